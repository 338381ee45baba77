//! Ring products: multiplications per second (criterion's elements), at the sizes of decoder layers.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ombra_runtime::backend::gemm::{MatRef, gemm_acc, gemm_acc_at};
use ombra_runtime::backend::isa::Isa;

/// Prefill, square, large prefill, and small batches against a large weight.
const SHAPES: [(usize, usize, usize); 8] = [
    (256, 768, 768),
    (1024, 1024, 1024),
    (1024, 768, 3072),
    (32, 4096, 4096),
    (8, 4096, 4096),
    (1, 4096, 4096),
    (1, 768, 768),
    (128, 64, 128),
];

fn numbers(n: usize) -> Vec<u64> {
    (0..n as u64).map(|i| (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect()
}

fn products(c: &mut Criterion) {
    for (m, k, n) in SHAPES {
        let (a, b) = (numbers(m * k), numbers(k * n));
        let a = MatRef::row_major(&a, m, k).expect("the buffer has this shape");
        let rows = MatRef::row_major(&b, k, n).expect("the buffer has this shape");
        let columns = MatRef::row_major(&b, n, k).expect("the buffer has this shape").transposed();
        let mut out = vec![0; m * n];
        let mut group = c.benchmark_group(format!("gemm/{m}x{k}x{n}"));
        group.throughput(Throughput::Elements((m * k * n) as u64)).sample_size(10);
        for threads in [1, 2] {
            group.bench_function(BenchmarkId::new("plain", threads), |bench| {
                bench.iter(|| gemm_acc(a, rows, &mut out, threads));
            });
            group.bench_function(BenchmarkId::new("transposed", threads), |bench| {
                bench.iter(|| gemm_acc(a, columns, &mut out, threads));
            });
        }
        group.finish();
    }
}

fn levels(c: &mut Criterion) {
    let (m, k, n) = SHAPES[0];
    let (a, b) = (numbers(m * k), numbers(k * n));
    let a = MatRef::row_major(&a, m, k).expect("the buffer has this shape");
    let b = MatRef::row_major(&b, k, n).expect("the buffer has this shape");
    let mut out = vec![0; m * n];
    let mut group = c.benchmark_group(format!("gemm-levels/{m}x{k}x{n}"));
    group.throughput(Throughput::Elements((m * k * n) as u64)).sample_size(10);
    for isa in Isa::available() {
        group.bench_function(BenchmarkId::new("plain", isa.name()), |bench| {
            bench.iter(|| gemm_acc_at(isa, a, b, &mut out, 1));
        });
    }
    group.finish();
}

criterion_group!(benches, products, levels);
criterion_main!(benches);
