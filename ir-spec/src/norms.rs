//! Bounds that are finer than whole bits: of elements, and of the 2-norms of rows and columns.
//!
//! A norm is written as its logarithm in hundredths of a bit, rounded up, so that a number `n` says "at most
//! `2^(n / 100)` integers". Weights declare the norms of their rows and columns; [`Measure`] finds them, for the compiler
//! and for whoever encodes the weights.

use crate::diag::{Diagnostic, Result};
use crate::plain::tensor::volume;
use serde::{Deserialize, Serialize};

/// Parts of a bit.
pub const BIT: u32 = 100;
/// What a weight declares is rounded up to a multiple of this: a quarter of a bit.
pub const QUARTER: u32 = BIT / 4;

/// What is known of the integers of a tensor beside their bound; `None` where nothing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Norms {
    /// Of every element.
    pub size: Option<u16>,
    /// Of every row along the last axis.
    pub rows: Option<u16>,
    /// Of every column along the last axis but one.
    pub columns: Option<u16>,
}

impl Norms {
    /// Words of the text form, with the numbers.
    pub fn named(&self) -> [(&'static str, Option<u16>); 3] {
        [("size", self.size), ("rows", self.rows), ("columns", self.columns)]
    }

    /// The lesser of the numbers of both.
    pub fn finer(&self, other: &Norms) -> Norms {
        let least = |a: Option<u16>, b: Option<u16>| a.into_iter().chain(b).min();
        Norms {
            size: least(self.size, other.size),
            rows: least(self.rows, other.rows),
            columns: least(self.columns, other.columns),
        }
    }

    /// `f` of every number that is known, as far as the result can be stored.
    pub(crate) fn map(&self, f: impl Fn(u32) -> u32) -> Norms {
        let [size, rows, columns] =
            [self.size, self.rows, self.columns].map(|n| n.and_then(|n| u16::try_from(f(n.into())).ok()));
        Norms { size, rows, columns }
    }

    /// Whether nothing is known.
    pub fn is_none(&self) -> bool {
        *self == Norms::default()
    }
}

/// Bits as in the text form: `20`, `20.5`, `20.07`.
pub fn show(hundredths: u16) -> String {
    let (bits, part) = (u32::from(hundredths) / BIT, u32::from(hundredths) % BIT);
    match part {
        0 => bits.to_string(),
        _ if part.is_multiple_of(10) => format!("{bits}.{}", part / 10),
        _ => format!("{bits}.{part:02}"),
    }
}

/// The number that [`show`] writes as this word.
pub fn read(word: &str) -> Option<u16> {
    let (bits, part) = word.split_once('.').unwrap_or((word, ""));
    let part: u32 = match part.len() {
        0 => 0,
        1 => part.parse::<u32>().ok()? * 10,
        _ => part.parse().ok()?,
    };
    let value = u16::try_from(bits.parse::<u32>().ok()?.checked_mul(BIT)?.checked_add(part)?).ok()?;
    (show(value) == word).then_some(value)
}

/// The maximum norms of the rows and columns of a tensor, element after element.
///
/// Sums are of squares of rounded integers in double precision, in the order of elements, and a little larger than exact
/// ones would be.
pub struct Measure {
    /// Integers that a 1 is rounded to; reals are taken as they are.
    unit: Option<f64>,
    /// Elements of a row, where there is an axis.
    width: Option<usize>,
    /// Rows of a matrix, where there are two axes.
    height: usize,
    at: usize,
    row: f64,
    columns: Vec<f64>,
    longest: [f64; 2],
}

/// Elements whose squares are made at once.
const SOME: usize = 256;
/// What sums of rounded squares may be off by, relative to them.
const SLACK: f64 = 1.0 + 1e-6;

impl Measure {
    /// Nothing yet of a tensor of this shape, in integers of a scale or in reals.
    ///
    /// # Errors
    /// The tensor is too large.
    pub fn new(shape: &[usize], scale: Option<u8>) -> Result<Self> {
        volume(shape)?;
        let width = shape.last().copied();
        let matrix = shape.len() >= 2;
        Ok(Measure {
            unit: scale.map(|scale| libm::ldexp(1.0, i32::from(scale))),
            width,
            height: shape.iter().rev().nth(1).copied().unwrap_or(1),
            at: 0,
            row: 0.0,
            columns: vec![0.0; width.filter(|_| matrix).unwrap_or(0)],
            longest: [0.0; 2],
        })
    }

    /// The next elements.
    pub fn take(&mut self, mut values: &[f32]) {
        let Some(width) = self.width.filter(|&w| w > 0) else { return };
        while !values.is_empty() {
            let (part, rest) = values.split_at(values.len().min(width - self.at % width));
            let from = self.at % width;
            let mut columns = self.columns.get_mut(from..).unwrap_or_default().iter_mut();
            let mut row = 0.0;
            // Squares first, some at a time: they are made by vectors, and the sum of a row goes from one to the next.
            for part in part.chunks(SOME) {
                let mut squares = [0.0; SOME];
                for (square, &x) in squares.iter_mut().zip(part) {
                    let x = self.unit.map_or(f64::from(x), |unit| rounded(f64::from(x).abs() * unit));
                    *square = x * x;
                }
                let squares = &squares[..part.len()];
                squares.iter().zip(columns.by_ref()).for_each(|(square, column)| *column += square);
                row = squares.iter().fold(row, |row, square| row + square);
            }
            self.row += row;
            self.at += part.len();
            values = rest;
            if self.at.is_multiple_of(width) {
                self.longest[0] = greater(self.longest[0], std::mem::take(&mut self.row));
                if (self.at / width).is_multiple_of(self.height.max(1)) {
                    let columns = self.columns.iter_mut().map(std::mem::take);
                    self.longest[1] = columns.fold(self.longest[1], greater);
                }
            }
        }
    }

    /// The maximum norms of rows and columns, where there are such.
    pub fn longest(&self) -> [Option<f64>; 2] {
        let [rows, columns] = self.longest.map(|squares| libm::sqrt(squares * SLACK));
        [self.width.map(|_| rows), (!self.columns.is_empty()).then_some(columns)]
    }

    /// What a weight of these elements declares: the norms of rows and columns, up to quarters of a bit.
    pub fn declared(&self) -> Norms {
        let [rows, columns] = self.longest().map(|norm| norm.and_then(quarters));
        Norms { size: None, rows, columns }
    }

    /// Checks what was taken against what is declared.
    ///
    /// # Errors
    /// `E0381` where rows or columns are longer.
    pub fn check(&self, declared: &Norms) -> Result<()> {
        let named = [("row", declared.rows), ("column", declared.columns)];
        for ((name, most), found) in named.into_iter().zip(self.longest()) {
            let Some(most) = most else { continue };
            let found = found.unwrap_or(f64::INFINITY);
            if found <= libm::exp2(f64::from(most) / f64::from(BIT)) {
                continue;
            }
            return Err(Diagnostic::input("E0381", format!("a {name} is longer than its type declares"))
                .note(format!("expected a 2-norm of at most 2^{} integers", show(most)))
                .note("use the weights that the plan was made from, or compile again with these"));
        }
        Ok(())
    }
}

/// The nearest integer of what is not negative, halves up. From `2^52` on every double is an integer, and below the sum
/// with it ends in the integer's bits: no call, no branch.
fn rounded(x: f64) -> f64 {
    const INTEGERS: f64 = 4_503_599_627_370_496.0;
    let above = x + 0.5;
    let nearest = (above + INTEGERS) - INTEGERS;
    let floor = if nearest > above { nearest - 1.0 } else { nearest };
    if above < INTEGERS { floor } else { above }
}

/// The greater one; infinity rather than no number.
fn greater(a: f64, b: f64) -> f64 {
    if b.is_nan() { f64::INFINITY } else { a.max(b) }
}

/// The number that stands for a size or a norm, up to quarters of a bit; `None` where it is not finite.
pub fn quarters(norm: f64) -> Option<u16> {
    if !norm.is_finite() {
        return None;
    }
    let quarters = libm::ceil(libm::log2(norm.max(1.0)) * 4.0 + 1e-9);
    u16::try_from(quarters as u32 * QUARTER).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_one_way() {
        for n in [0, 1, 9, 10, 25, 50, 99, 100, 2007, u16::MAX] {
            assert_eq!(read(&show(n)), Some(n));
        }
        for word in ["", ".5", "1.", "1.50", "1.234", "01", "1.0", "-1", "656", "x", "1.5.0", "+1"] {
            assert_eq!(read(word), None, "{word}");
        }
    }

    #[test]
    fn rounding_is_that_of_its_definition() {
        let large = [4_503_599_627_370_495.0, 4_503_599_627_370_496.0, 9_007_199_254_740_993.0, 1e300, f64::INFINITY];
        for x in (0..4000).map(|i| f64::from(i) / 16.0).chain([0.499_999_999_999_999_94]).chain(large) {
            assert_eq!(rounded(x), (x + 0.5).trunc(), "{x}");
        }
        assert!(rounded(f64::NAN).is_nan());
    }

    #[test]
    fn norms_are_measured_whatever_the_parts_are() {
        let values: Vec<f32> = (0..24).map(|i| (i as f32 - 9.3) / 4.0).collect();
        let longest = |parts: usize| {
            let mut m = Measure::new(&[2, 3, 4], Some(2)).unwrap();
            values.chunks(parts).for_each(|part| m.take(part));
            m.longest()
        };
        // Integers from −9 to 14: the last row is 11 to 14, the last column 6, 10, 14.
        let [rows, columns] = longest(24).map(Option::unwrap);
        assert!((rows - 630f64.sqrt()).abs() < 1e-3 && (columns - 332f64.sqrt()).abs() < 1e-3, "{rows} {columns}");
        for parts in 1..24 {
            assert_eq!(longest(parts).map(Option::unwrap), [rows, columns]);
        }
        // Rows of several pieces: of each column two integers, −2 and 3.
        let long: Vec<f32> = (0..2 * 1000).map(|i| if i < 1000 { -1.75 } else { 2.5 }).collect();
        let mut m = Measure::new(&[2, 1000], Some(0)).unwrap();
        m.take(&long);
        let [row, column] = m.longest().map(Option::unwrap);
        assert!((row - 9000f64.sqrt()).abs() < 1e-3 && (column - 13f64.sqrt()).abs() < 1e-3, "{row} {column}");
        let declared = |rows, columns| Norms { size: None, rows, columns };
        let mut m = Measure::new(&[2, 3, 4], Some(2)).unwrap();
        m.take(&values);
        let (row, column) = (quarters(rows), quarters(columns));
        m.check(&declared(row, column)).unwrap();
        for short in [declared(row.map(|n| n - 25), column), declared(row, column.map(|n| n - 25))] {
            assert_eq!(m.check(&short).unwrap_err().code, "E0381");
        }
        let mut m = Measure::new(&[1], Some(2)).unwrap();
        m.take(&[f32::NAN]);
        assert_eq!(m.check(&declared(Some(u16::MAX), None)).unwrap_err().code, "E0381");
        assert_eq!(quarters(f64::INFINITY), None);
    }
}
