//! Lattice kernels: transforms by instruction set, products with encrypted weights, in tiles and in slots.
//!
//! `RAYON_NUM_THREADS=1` gives the times of one core.

use criterion::{BenchmarkId, Criterion, criterion_group};
use ombra_lattice::lanes::Isa;
use ombra_lattice::ntt::Ntt;
use ombra_lattice::params::{PRIMES_44, PRIMES_50, SLOT_SETS, TILE_SETS, WeightSet};
use ombra_lattice::random::Seed;
use ombra_lattice::slots::{
    SlotKey, Slots, decrypt_slots, encrypt_slots, multiply_slots, read_slot_ciphertext, read_slot_public_key,
    slot_public_key,
};
use ombra_lattice::tiles::{Labels, Tiling, tile_client, tile_server};
use ombra_lattice::weights::{
    ClientKey, EncryptedMatrix, ServerKey, Shape, client_product, encrypt_block, server_finish,
};

const PUBLIC: [u8; 16] = [1; 16];
/// The same for every call: nothing here is secret.
fn seed() -> Seed {
    Seed::new([2; 16])
}

fn transforms(c: &mut Criterion) {
    for (n, p, bits) in [(4096, PRIMES_44[0], 44), (4096, PRIMES_50[0], 50), (8192, PRIMES_50[0], 50)] {
        let mut group = c.benchmark_group(format!("ntt/{n} {bits} bits"));
        group.sample_size(20);
        let mut values: Vec<u64> = (0..n as u64).map(|i| i * i % p).collect();
        let (other, mut out) = (values.clone(), values.clone());
        for isa in Isa::available() {
            let t = Ntt::new_at(isa, n, p);
            group.bench_function(BenchmarkId::new("forward", isa.name()), |b| b.iter(|| t.forward(&mut values)));
            group.bench_function(BenchmarkId::new("inverse", isa.name()), |b| b.iter(|| t.inverse(&mut values)));
            group.bench_function(BenchmarkId::new("product of values", isa.name()), |b| {
                b.iter(|| t.dot([&values], [&other], &mut out));
            });
        }
        group.finish();
    }
}

/// The matrices of a layer of GPT-2, in ring 40.
fn weights(c: &mut Criterion) {
    let Some(set) = WeightSet::by_id(1) else { return };
    let key = ServerKey::new(set, 1, &[2; 16]);
    let client = ClientKey::new(key.public().clone());
    for (name, rows, cols) in [("q k v", 768, 2304), ("projection", 768, 768), ("fc1", 768, 3072), ("fc2", 3072, 768)] {
        let mut group = c.benchmark_group(format!("weights/{name}"));
        group.sample_size(10);
        let shape = Shape { index: 0, rows, cols };
        let elements = vec![5; rows * cols];
        group.bench_function("encrypt", |b| b.iter(|| encrypt_block(&key, shape, 0, &elements)));
        let Ok(bytes) = encrypt_block(&key, shape, 0, &elements) else { continue };
        let Ok(matrix) = EncryptedMatrix::new(set, shape, &bytes) else { continue };
        let sums = matrix.sums(&client);
        for batch in [32, 1] {
            let x = vec![1 << 30; rows * batch];
            let mut message = Vec::new();
            group.bench_function(BenchmarkId::new("client", batch), |b| {
                b.iter(|| client_product(&client, &matrix, &sums, 40, &x, seed(), &mut message));
            });
            group.bench_function(BenchmarkId::new("server", batch), |b| {
                b.iter(|| server_finish(&key, 40, cols, batch, &message));
            });
        }
        group.finish();
    }
}

/// Scores of twelve heads, 32 rows and columns, and a layer's weights for one token and for 64, in both sets.
fn tiles(c: &mut Criterion) {
    for set in TILE_SETS {
        let Ok(client) = tile_client(set, seed()) else { continue };
        let public = client.public_key(&PUBLIC, seed());
        let Ok(server) = tile_server(set, &PUBLIC, &public) else { continue };
        for (name, [batch, rows, inner, cols]) in [
            ("scores of 32", [12, 32, 64, 32]),
            ("weights of 1", [1, 1, 768, 768]),
            ("weights of 64", [1, 64, 768, 768]),
        ] {
            let mut group = c.benchmark_group(format!("tiles/{name} in ring {}", set.ring));
            group.sample_size(10);
            let Ok(tiling) = Tiling::new(set, batch, rows, inner, cols) else { continue };
            let (left, right) = (vec![1 << 39; batch * rows * inner], vec![1 << 39; batch * inner * cols]);
            let labels = || Labels { public_seed: &PUBLIC, first_index: 0, seed: seed() };
            group.bench_function("encrypt", |b| b.iter(|| client.encrypt_left(&tiling, 40, &left, labels())));
            let Ok(message) = client.encrypt_left(&tiling, 40, &left, labels()) else { continue };
            group.bench_function("multiply", |b| {
                b.iter(|| server.multiply_right(&tiling, 40, &message, &right, labels()));
            });
            let Ok((answer, _)) = server.multiply_right(&tiling, 40, &message, &right, labels()) else { continue };
            group.bench_function("decrypt", |b| b.iter(|| client.decrypt_products(&tiling, 40, &answer)));
            group.finish();
        }
    }
}

fn slots(c: &mut Criterion) {
    let slots = Slots::new(&SLOT_SETS[0]);
    let key = SlotKey::new(&slots, seed());
    let bytes = slot_public_key(&slots, &key, &PUBLIC, seed());
    let Ok(public) = read_slot_public_key(&slots, &PUBLIC, &bytes) else { return };
    for width in [8192, 1024] {
        let mut group = c.benchmark_group(format!("slots/{width}"));
        group.sample_size(20);
        let values: Vec<u64> = (0..width as u64).map(|i| i << 29).collect();
        group.bench_function("encrypt", |b| {
            b.iter(|| encrypt_slots(&slots, &key, width, &values, &PUBLIC, 0, seed()));
        });
        let Ok(message) = encrypt_slots(&slots, &key, width, &values, &PUBLIC, 0, seed()) else { continue };
        group.bench_function("read", |b| b.iter(|| read_slot_ciphertext(&slots, width, &PUBLIC, 0, &message)));
        let Ok(operand) = read_slot_ciphertext(&slots, width, &PUBLIC, 0, &message) else { continue };
        let terms = [(&operand, &values[..]), (&operand, &values[..])];
        group.bench_function("square", |b| b.iter(|| multiply_slots(&slots, &public, &terms[..1], seed())));
        group.bench_function("product", |b| b.iter(|| multiply_slots(&slots, &public, &terms, seed())));
        let Ok((answer, _)) = multiply_slots(&slots, &public, &terms, seed()) else { continue };
        group.bench_function("decrypt", |b| b.iter(|| decrypt_slots(&slots, &key, width, &answer)));
        group.finish();
    }
}

criterion_group!(benches, transforms, weights, tiles, slots);

fn main() {
    // As the parties' programs do: polynomials come and go.
    ombra_runtime::memory::keep_freed_blocks();
    benches();
    Criterion::default().configure_from_args().final_summary();
}
