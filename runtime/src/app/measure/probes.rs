//! Small programs whose times tell what a unit of work takes.
//!
//! A probe is a chain of one thing, short and long: the difference of their times is that of what the long one has more,
//! and what they have in common cancels. All inputs are zero.

use ombra_ir::infer::{push_source, push_within};
use ombra_ir::module::{Id, InputSlot, Module, Origin, Setting, Stage};
use ombra_ir::op::Op;
use ombra_ir::plain::{DType, Tensor};
use ombra_ir::profile::Unit;
use ombra_ir::ty::{BoundFrom, Sharing, Ty};
use ombra_ir::{Dim, Dims, Result};

/// Ring bits and fraction bits of all values.
const RING: u8 = 64;
const SCALE: u8 = 16;
/// Bound of all values: they are zero.
const BOUND: u8 = 12;

/// How large probes are.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Rows and columns of values whose elements are counted.
    pub side: usize,
    /// Rows and columns of matrices.
    pub matrix: usize,
    /// Rows of the left factor of products.
    pub rows: usize,
    /// Rows of the table of a lookup.
    pub table: usize,
}

impl Size {
    /// For a machine: a quarter of a million elements, matrices of a small model.
    pub const MACHINE: Size = Size { side: 512, matrix: 768, rows: 64, table: 1 << 14 };
}

/// A short and a long program that differ in one unit above all.
pub struct Probe {
    /// What it measures.
    pub unit: Unit,
    /// The programs.
    pub modules: [Module; 2],
    /// The client's inputs of both.
    pub inputs: [Vec<Tensor>; 2],
}

/// All probes of a setting. Each one needs at most the rates of those before it.
///
/// # Errors
/// None for the sizes of [`Size::MACHINE`]; otherwise a size that the operations do not have.
pub fn probes(setting: Setting, size: Size) -> Result<Vec<Probe>> {
    let square = [size.side, size.side];
    let rounds = |n: usize| {
        floats(setting, &[&[8]], |b, x| {
            let mut y = x[0];
            for _ in 0..n {
                let fine = b.push(Op::Upscale { by: 8 }, &[y])?;
                y = b.push(Op::Truncate { by: 8, bits: 64 }, &[fine])?;
            }
            Ok(())
        })
    };
    let local = |n: usize| {
        floats(setting, &[&square], |b, x| {
            let mut y = x[0];
            for _ in 0..n {
                y = b.push(Op::Add, &[y, x[0]])?;
                y = b.push(Op::Transpose { perm: vec![1, 0] }, &[y])?;
            }
            let fine = b.push(Op::Upscale { by: 8 }, &[y])?;
            b.push(Op::Truncate { by: 8, bits: 64 }, &[fine]).map(drop)
        })
    };
    let truncations = |n: usize| {
        floats(setting, &[&square], |b, x| {
            let mut y = x[0];
            for _ in 0..n {
                let square = b.push(Op::Mul, &[y, y])?;
                y = b.push(Op::Truncate { by: SCALE, bits: 64 }, &[square])?;
            }
            Ok(())
        })
    };
    let reshared = |n: usize| {
        floats(setting, &[&square], |b, x| {
            let mut y = x[0];
            for _ in 0..n {
                let square = b.push(Op::Mul, &[y, y])?;
                let shared = b.push(Op::Reshare, &[square])?;
                y = b.push(Op::SetScale { scale: SCALE }, &[shared])?;
            }
            Ok(())
        })
    };
    let compared = |n: usize, width: u8| {
        floats(setting, &[&square], |b, x| {
            let mut y = x[0];
            for _ in 0..n {
                let bits = b.push(Op::Msb { width, drop: 0 }, &[y])?;
                let ring = b.push(Op::BitToRing { bits: RING }, &[bits])?;
                y = b.push(Op::SetScale { scale: SCALE }, &[ring])?;
            }
            Ok(())
        })
    };
    let (rows, k) = ([size.rows, size.matrix], [size.matrix, size.matrix]);
    let secret = |n: usize| {
        floats(setting, &[&rows, &k], |b, x| {
            let mut y = x[0];
            for _ in 0..n {
                let product = b.push(Op::MatMul { trans_b: false }, &[y, x[1]])?;
                y = b.push(Op::Truncate { by: SCALE, bits: 64 }, &[product])?;
            }
            Ok(())
        })
    };
    let weights = |n: usize, rows: usize, public: bool| {
        floats(setting, &[&[rows, size.matrix]], |b, x| {
            let mut y = x[0];
            for i in 0..n {
                let w = b.weight(&format!("w{i}"), &k, public)?;
                let product = b.push(Op::MatMul { trans_b: false }, &[y, w])?;
                y = b.push(Op::Truncate { by: SCALE, bits: 64 }, &[product])?;
            }
            Ok(())
        })
    };
    let lookup = |n: usize| -> Result<_> {
        let mut b = Build::new(setting);
        let dims = dims(&[1, n]);
        let slot = InputSlot { name: "ids".into(), dtype: DType::I64, shape: dims.clone() };
        b.0.inputs.push(slot);
        let ids = Ty::plain(DType::I64, Sharing::Client, dims);
        let ids = push_source(&mut b.0, Op::ClientInts { slot: 0 }, ids, Origin::default())?;
        let table = b.weight("table", &[size.table, 64], false)?;
        b.push(Op::Embed, &[ids, table])?;
        Ok((b.0, vec![Tensor::i64(&[1, n], vec![0; n])?]))
    };
    Ok(vec![
        probe(Unit::Rounds, rounds(4)?, rounds(64)?),
        probe(Unit::LocalElements, local(2)?, local(14)?),
        probe(Unit::Truncations, truncations(1)?, truncations(5)?),
        probe(Unit::ResharedElements, reshared(1)?, reshared(5)?),
        probe(Unit::ComparedBits, compared(3, 16)?, compared(3, 64)?),
        probe(Unit::ConvertedBits, compared(1, 16)?, compared(4, 16)?),
        probe(Unit::SecretMacs, secret(1)?, secret(5)?),
        probe(Unit::PublicMacs, weights(1, size.rows, true)?, weights(5, size.rows, true)?),
        probe(Unit::WeightElements, weights(1, 1, false)?, weights(9, 1, false)?),
        probe(Unit::DpfPoints, lookup(1)?, lookup(17)?),
    ])
}

fn probe(unit: Unit, short: (Module, Vec<Tensor>), long: (Module, Vec<Tensor>)) -> Probe {
    Probe { unit, modules: [short.0, long.0], inputs: [short.1, long.1] }
}

/// A module under construction.
struct Build(Module);

impl Build {
    fn new(setting: Setting) -> Build {
        Build(Module::empty("probe".into(), setting, Stage::Scheduled, Dims::default()))
    }

    fn push(&mut self, op: Op, args: &[Id]) -> Result<Id> {
        push_within(&mut self.0, op, args, (BOUND, BoundFrom::Calibrated), Origin::default())
    }

    fn weight(&mut self, name: &str, shape: &[usize], public: bool) -> Result<Id> {
        let sharing = if public { Sharing::Public } else { Sharing::Shared };
        let ty = Ty::ring(RING, SCALE, sharing, dims(shape), BOUND);
        let name = name.to_string();
        let op = if public { Op::PublicWeight { name } } else { Op::Weight { name } };
        push_source(&mut self.0, op, ty, Origin::default())
    }
}

fn dims(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|&n| Dim::constant(i64::try_from(n).unwrap_or(i64::MAX))).collect()
}

/// A program over inputs of these shapes, and zeros for them.
fn floats(
    setting: Setting,
    shapes: &[&[usize]],
    build: impl FnOnce(&mut Build, &[Id]) -> Result<()>,
) -> Result<(Module, Vec<Tensor>)> {
    let mut b = Build::new(setting);
    let (mut ids, mut tensors) = (Vec::new(), Vec::new());
    for (slot, &shape) in (0u32..).zip(shapes) {
        let input = InputSlot { name: format!("x{slot}"), dtype: DType::F32, shape: dims(shape) };
        b.0.inputs.push(input);
        let ty = Ty::ring(RING, SCALE, Sharing::Shared, dims(shape), BOUND);
        ids.push(push_source(&mut b.0, Op::Input { slot }, ty, Origin::default())?);
        tensors.push(Tensor::f32(shape, vec![0.0; shape.iter().product()])?);
    }
    build(&mut b, &ids)?;
    Ok((b.0, tensors))
}
