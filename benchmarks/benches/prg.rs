//! Generator, point functions, bit planes and elementwise loops: bytes or elements per second on one core.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ombra_runtime::backend::bits::{from_planes, to_planes, words};
use ombra_runtime::backend::elementwise::{Step, add_assign, mul_assign, pack_ring, run_chain, unpack_ring};
use ombra_runtime::dpf;
use ombra_runtime::prg::{AesIsa, Key, Label, Prg};

const LABEL: Label = Label { op: 1, step: 2, purpose: 3, part: 4 };
/// 256 KiB, inside the second cache.
const WORDS: usize = 1 << 15;

fn generator(c: &mut Criterion) {
    let key = Key::from_bytes([7; 16]);
    for n in [128, WORDS, 1 << 24] {
        let mut out = vec![0u64; n];
        let mut group = c.benchmark_group(format!("prg/{n} words"));
        group.throughput(Throughput::Bytes(8 * n as u64)).sample_size(10);
        for isa in AesIsa::available() {
            let prg = Prg::new_at(isa, &key);
            group.bench_function(BenchmarkId::new("fill", isa.name()), |b| b.iter(|| prg.fill_u64(LABEL, &mut out)));
            group.bench_function(BenchmarkId::new("add", isa.name()), |b| {
                b.iter(|| prg.add_assign_u64(LABEL, &mut out));
            });
        }
        group.finish();
    }
}

fn point_function(c: &mut Criterion) {
    let domain = 50_257;
    let prg = Prg::new(&Key::from_bytes([7; 16]));
    let mut rng = |out: &mut [u8]| {
        let mut words = [0; 4];
        prg.fill_u64(LABEL, &mut words);
        out.iter_mut().zip(words.iter().flat_map(|w| w.to_le_bytes())).for_each(|(o, b)| *o = b);
    };
    let (key, _) = dpf::generate(31_337, domain, &mut rng).expect("index lies in the domain");
    let mut out = vec![0; domain];
    let mut group = c.benchmark_group("dpf/50257");
    group.sample_size(10);
    group.bench_function("generate", |b| b.iter(|| dpf::generate(31_337, domain, &mut rng)));
    group.throughput(Throughput::Elements(domain as u64));
    group.bench_function("eval_full", |b| b.iter(|| dpf::eval_full(&key, domain, &mut out)));
    group.finish();
}

fn loops(c: &mut Criterion) {
    let x: Vec<u64> = (0..WORDS as u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect();
    let y = x.clone();
    let mut out = vec![0; WORDS];
    let mut group = c.benchmark_group("loops");
    group.throughput(Throughput::Elements(WORDS as u64)).sample_size(10);
    for w in [1, 16, 28, 64] {
        let mut planes = vec![0; w as usize * words(WORDS)];
        group.bench_function(BenchmarkId::new("to_planes", w), |b| b.iter(|| to_planes(&x, w, &mut planes)));
    }
    let plane = vec![0x5555; words(WORDS)];
    group.bench_function("from_planes", |b| b.iter(|| from_planes(&plane, &mut out)));
    group.bench_function("add_assign", |b| b.iter(|| add_assign(&mut out, &x)));
    group.bench_function("mul_assign", |b| b.iter(|| mul_assign(&mut out, &x)));
    let steps = [Step::MulInput(0), Step::AddConst(5), Step::MulConst(3), Step::SubInput(0), Step::Shl(1)];
    group.bench_function("chain of 5", |b| b.iter(|| run_chain(&x, &[&y], &steps, &mut out)));
    for bits in [16, 40, 64] {
        let mut bytes = Vec::new();
        group.bench_function(BenchmarkId::new("pack_ring", bits), |b| {
            b.iter(|| {
                bytes.clear();
                pack_ring(&x, bits, &mut bytes);
            });
        });
        group.bench_function(BenchmarkId::new("unpack_ring", bits), |b| {
            b.iter(|| unpack_ring(&bytes, bits, &mut out));
        });
    }
    group.finish();
}

criterion_group!(benches, generator, point_function, loops);
criterion_main!(benches);
