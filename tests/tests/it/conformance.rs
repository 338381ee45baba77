//! The table of the node tests, without the tests themselves: the checks fetch and run those.

use ombra_ir::plain::Tensor;
use ombra_tests::conformance::case::difference;
use ombra_tests::conformance::list;

#[test]
fn the_table_has_every_test_and_no_failure() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/conformance/table.md");
    let table = std::fs::read_to_string(path).expect("the table is bundled");
    let rows: Vec<&str> = table.lines().filter_map(|line| line.strip_prefix("| test_")).collect();
    let names: Vec<String> = list().into_iter().flat_map(|section| section.names).collect();
    assert_eq!(names.len(), 676);
    assert_eq!(rows.len(), names.len());
    for (row, name) in rows.iter().zip(&names) {
        assert_eq!(row.split(' ').next().map(|rest| format!("test_{rest}")).as_ref(), Some(name));
        assert!(!row.contains("FAILED"), "{row}");
    }
}

#[test]
fn outputs_that_differ_are_found() {
    let x = Tensor::f32(&[2], vec![1.0, f32::NAN]).expect("two elements");
    let near = Tensor::f32(&[2], vec![1.0009, f32::NAN]).expect("two elements");
    assert_eq!(difference(&near, &x, 1e-7, 1e-3), None);
    let far = Tensor::f32(&[2], vec![1.002, f32::NAN]).expect("two elements");
    assert!(difference(&far, &x, 1e-7, 1e-3).is_some());
    let number = Tensor::f32(&[2], vec![1.0, 0.0]).expect("two elements");
    assert!(difference(&number, &x, 1e-7, 1e-3).is_some());
    let turned = Tensor::f32(&[2, 1], vec![1.0, f32::NAN]).expect("two elements");
    assert!(difference(&turned, &x, 1e-7, 1e-3).is_some());
    let ints = Tensor::i64(&[2], vec![1, 0]).expect("two elements");
    assert!(difference(&ints, &x, 1e-7, 1e-3).is_some());
    assert!(difference(&ints, &Tensor::i64(&[2], vec![1, 1]).expect("two elements"), 9.0, 9.0).is_some());
}
