//! Products on a device against those of `ombra-kernels`, in both forms of integers.
//!
//! Without a device these tests say so and pass, unless `OMBRA_EXPECT_GPU=1` says that there is one. `OMBRA_GPU_SOFTWARE=1`
//! lets them use a driver that computes on the processor.

use std::sync::Arc;

use fastrand::Rng;
use ombra_gpu::{Error, Form, Gpu, Options, compare, open};
use ombra_kernels::gemm::{MatRef, gemm_acc};

/// A device in a form of integers, if there is one that has it.
fn device(form: Form, binding: Option<u64>, memory: Option<u64>) -> Option<Arc<Gpu>> {
    let options = Options { form: Some(form), binding, memory, ..Options::from_environment().unwrap() };
    match open(&options) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            let expected = std::env::var("OMBRA_EXPECT_GPU").is_ok_and(|value| value == "1");
            assert!(!expected, "OMBRA_EXPECT_GPU says that there is a device: {error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// What `ombra-kernels` adds to `out`.
fn add_product(x: &[u64], y: &[u64], (m, k, n): (usize, usize, usize), trans_b: bool, out: &mut [u64]) {
    let right =
        if trans_b { MatRef::row_major(y, n, k).unwrap().transposed() } else { MatRef::row_major(y, k, n).unwrap() };
    gemm_acc(MatRef::row_major(x, m, k).unwrap(), right, out, 1);
}

fn draw(rng: &mut Rng, n: usize) -> Vec<u64> {
    // Also words at both ends of the ring, where carries are.
    (0..n)
        .map(
            |_| {
                if rng.u8(..) < 16 {
                    [0, 1, u64::MAX, 1 << 63, u64::from(u32::MAX)][rng.usize(..5)]
                } else {
                    rng.u64(..)
                }
            },
        )
        .collect()
}

/// Compares some products, of matrices that are sent in pieces and used again.
fn check(gpu: &Arc<Gpu>, rng: &mut Rng, sizes: &[(usize, usize, usize)]) {
    for &(m, k, n) in sizes {
        for trans_b in [false, true] {
            let (rows, columns) = if trans_b { (n, k) } else { (k, n) };
            let y = draw(rng, k * n);
            let mut placing = gpu.place(rows, columns).unwrap().expect("there is room");
            let mut rest = y.as_slice();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rng.usize(1..=rest.len()));
                placing.put(now).unwrap();
                rest = later;
            }
            let placed = placing.end().unwrap();
            assert_eq!(placed.sizes(), [rows, columns]);
            for m in [m, 1] {
                let x = draw(rng, m * k);
                let mut expected = draw(rng, m * n);
                let mut found = expected.clone();
                add_product(&x, &y, (m, k, n), trans_b, &mut expected);
                placed.add_product(&x, trans_b, &mut found).unwrap();
                assert!(found == expected, "{m} x {k} x {n}, exchanged {trans_b}, {}", gpu.name());
            }
        }
    }
}

const FORMS: [Form; 2] = [Form::Wide, Form::Limbs];

#[test]
fn products_equal_the_processors() {
    for form in FORMS {
        let Some(gpu) = device(form, None, None) else { continue };
        assert_eq!(gpu.form(), form);
        let mut rng = Rng::with_seed(7);
        let mut sizes = vec![(1, 1, 1), (16, 16, 32), (17, 64, 64), (64, 129, 65), (3, 1, 200), (129, 17, 1)];
        sizes.extend((0..12).map(|_| (rng.usize(1..140), rng.usize(1..200), rng.usize(1..150))));
        check(&gpu, &mut rng, &sizes);
        assert_eq!(gpu.placed_bytes(), 0);
    }
}

#[test]
fn matrices_above_the_limit_of_a_binding_are_split() {
    for form in FORMS {
        // 512 elements a buffer: rows of at most that many, and a few rows of what is sent at once.
        let Some(gpu) = device(form, Some(4096), None) else { continue };
        let mut rng = Rng::with_seed(8);
        let sizes: Vec<_> = (0..8).map(|_| (rng.usize(1..60), rng.usize(1..150), rng.usize(1..150))).collect();
        check(&gpu, &mut rng, &sizes);
        assert!(gpu.place(1, 513).unwrap().is_none(), "a row must fit");
        assert!(gpu.place(257, 512).unwrap().is_none(), "no more slabs than there is room for their sizes");
    }
}

#[test]
fn a_long_product_is_sent_and_fetched_in_pieces() {
    let Some(gpu) = device(Form::Limbs, None, None) else { return };
    // More than one piece of 16 MiB each way.
    let (m, k, n) = (5000, 9, 500);
    check(&gpu, &mut Rng::with_seed(9), &[(m, k, n), (n, m, k)]);
}

#[test]
fn what_does_not_fit_is_not_placed_and_room_comes_back() {
    let Some(gpu) = device(Form::Limbs, None, Some(40_000)) else { return };
    let first = gpu.place(50, 60).unwrap().expect("there is room");
    assert_eq!(gpu.placed_bytes(), 24_000);
    assert!(gpu.place(50, 60).unwrap().is_none());
    let (x, y, mut out) = (vec![1; 50], vec![2; 3000], vec![7; 60]);
    assert_eq!(gpu.add_product((&x, &y), (50, 60), false, &mut out), Ok(false));
    assert_eq!(out, [7; 60], "nothing is added where there is no room");
    drop(first);
    assert_eq!(gpu.placed_bytes(), 0);
    assert_eq!(gpu.add_product((&x, &y), (50, 60), false, &mut out), Ok(true));
    assert_eq!(out, [107; 60]);
}

#[test]
fn operands_of_other_sizes_are_errors_and_leave_the_device_usable() {
    let Some(gpu) = device(Form::Limbs, None, None) else { return };
    let wrong = |error: Result<_, Error>| assert!(matches!(error, Err(Error::Sizes(_))));
    let mut placing = gpu.place(2, 3).unwrap().expect("there is room");
    placing.put(&[1; 5]).unwrap();
    wrong(placing.put(&[1; 2]));
    wrong(placing.end().map(drop));
    let mut placing = gpu.place(2, 3).unwrap().expect("there is room");
    placing.put(&[1; 6]).unwrap();
    let placed = placing.end().unwrap();
    wrong(placed.add_product(&[1; 3], false, &mut [0; 3]));
    wrong(placed.add_product(&[1; 2], false, &mut [0; 4]));
    wrong(placed.add_product(&[1; 2], true, &mut [0; 3]));
    assert_eq!(placed.add_product(&[], false, &mut []), Ok(()), "no rows are no work");
    let mut out = [0; 3];
    placed.add_product(&[1, 2], false, &mut out).unwrap();
    assert_eq!(out, [3; 3]);
    assert!(gpu.place(0, 5).unwrap().is_none() && gpu.place(usize::MAX, 5).unwrap().is_none());
}

#[test]
fn a_trial_is_of_sizes_that_take_no_time() {
    let Some(gpu) = device(Form::Limbs, None, None) else { return };
    let trial = compare(&gpu, [3, 50, 40], 1).unwrap().expect("there is room");
    assert_eq!(trial.sizes, [3, 50, 40]);
    assert!(trial.device > 0.0 && trial.processor > 0.0);
}

#[test]
fn several_threads_share_a_device() {
    let Some(gpu) = device(Form::Limbs, None, None) else { return };
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let gpu = &gpu;
            scope.spawn(move || check(gpu, &mut Rng::with_seed(seed), &[(20, 30, 40), (2, 70, 10)]));
        }
    });
}
