//! What depends on weights and constants alone: its elements, and what was found of them.
//!
//! A model is compiled more than once: its program is priced with and without rewriting, the self-test reads the logits of
//! all positions, savings are counted pass by pass. What takes reading all weights is therefore kept, under a digest of the
//! operators that make a value and of the names of its weights, which is the same in every graph of one model.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use ombra_ir::norms::Norms;
use ombra_ir::plain::{Data, Tensor};
use ombra_ir::{Diagnostic, Result};
use sha2::{Digest, Sha256};

use crate::graph::{Graph, Op, TensorOp, ValueId, eval};
use crate::ranges::bounds::{Look, Product};
use crate::weights::stream::{Elements, each_block};

/// Digest of a static value, or of it and of other numbers that decide what is found.
pub type Key = [u8; 32];

/// Results by what they were found of.
#[derive(Debug)]
pub struct Table<T>(Mutex<BTreeMap<Key, T>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table(Mutex::default())
    }
}

impl<T: Clone> Table<T> {
    /// What is kept under `key`, or what `find` finds.
    ///
    /// # Errors
    /// Those of `find`, which are not kept.
    pub fn get(&self, key: Key, find: impl FnOnce() -> Result<T>) -> Result<T> {
        // Nothing is left half done by a panic: only whole results are put in.
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known().get(&key) {
            return Ok(found.clone());
        }
        let found = find()?;
        known().insert(key, found.clone());
        Ok(found)
    }
}

/// What was found of the static values of one model, with the weights of one file.
#[derive(Debug, Default)]
pub struct Known {
    /// Ends, norms and channels.
    pub looks: Table<Look>,
    /// Bounds of products with them.
    pub products: Table<Option<Product>>,
    /// Bounds of products of two maps of one row, see [`crate::ranges::bounds`].
    pub pairs: Table<Option<Vec<f64>>>,
    /// Maximum elements, and norms at a scale.
    pub encoded: Table<(f64, Norms)>,
    /// Whether one matrix is the transpose of another.
    pub tied: Table<bool>,
}

/// The static values of a graph.
pub struct Statics<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// What was found before, in any graph of the model.
    pub known: &'a Known,
    elements: &'a dyn Elements,
    keys: RefCell<BTreeMap<ValueId, Key>>,
}

impl<'a> Statics<'a> {
    /// Those of `graph`, whose weights `elements` gives; `known` is of the same weights.
    pub fn new(graph: &'a Graph, elements: &'a dyn Elements, known: &'a Known) -> Self {
        Statics { graph, known, elements, keys: RefCell::default() }
    }

    /// All elements of a value.
    ///
    /// # Errors
    /// A weight that cannot be read, or a value that is not static.
    pub fn value(&self, v: ValueId) -> Result<Tensor> {
        eval::static_value(self.graph, &|name: &str| self.elements.tensor(name), v)
    }

    /// Gives the elements of a value to `put`, some rows at a time.
    ///
    /// # Errors
    /// Those of [`Statics::value`] and of `put`.
    pub fn blocks(&self, v: ValueId, put: &mut dyn FnMut(&Data) -> Result<()>) -> Result<()> {
        each_block(self.graph, self.elements, v, put)
    }

    /// As [`Statics::blocks`], for values in single precision.
    ///
    /// # Errors
    /// Those of [`Statics::blocks`], and other elements.
    pub fn floats(&self, v: ValueId, put: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        self.blocks(v, &mut |data| match data {
            Data::F32(values) => put(values),
            Data::I64(_) | Data::Bool(_) => Err(Diagnostic::internal("E0544", "a weight is not a float tensor")),
        })
    }

    /// Some rows of a matrix that is a weight of the file; nothing where there are only whole values.
    ///
    /// # Errors
    /// Those of [`Statics::value`].
    pub fn rows(&self, v: ValueId, turned: bool, rows: std::ops::Range<usize>) -> Result<Option<Tensor>> {
        match self.graph.op(v) {
            Some(Op::Weight { name, transposed }) => self.elements.rows(name, *transposed != turned, rows),
            _ => Ok(None),
        }
    }

    /// What a value is, whatever graph it stands in: equal operators of equal operands have equal keys.
    ///
    /// # Errors
    /// Internal ones of the graph.
    pub fn key(&self, v: ValueId) -> Result<Key> {
        let mut keys = self.keys.borrow_mut();
        let mut open = vec![v];
        while let Some(&at) = open.last() {
            let operands = self.graph.operands(at);
            let waiting: Vec<ValueId> = operands.iter().copied().filter(|o| !keys.contains_key(o)).collect();
            if keys.contains_key(&at) {
                open.pop();
            } else if !waiting.is_empty() {
                open.extend(waiting);
            } else {
                let node = self.graph.node(at)?;
                let mut digest = Sha256::new();
                match &node.op {
                    Op::Tensor(TensorOp::Constant(tensor)) => {
                        digest.update(format!("{} {:?}", tensor.dtype().name(), tensor.shape()));
                        digest_data(&mut digest, tensor.data());
                    }
                    op => digest.update(format!("{op:?} {:?}", node.shape)),
                }
                operands.iter().filter_map(|o| keys.get(o)).for_each(|key| digest.update(key));
                keys.insert(at, digest.finalize().into());
                open.pop();
            }
        }
        keys.get(&v).copied().ok_or_else(|| Diagnostic::internal("E0299", "a static value is not in its graph"))
    }
}

fn digest_data(digest: &mut Sha256, data: &Data) {
    match data {
        Data::F32(v) => v.iter().for_each(|x| digest.update(x.to_le_bytes())),
        Data::I64(v) => v.iter().for_each(|x| digest.update(x.to_le_bytes())),
        Data::Bool(v) => v.iter().for_each(|x| digest.update([u8::from(*x)])),
    }
}

/// A key of several keys and of numbers.
pub fn key_of(parts: &[Key], numbers: impl IntoIterator<Item = f64>) -> Key {
    let mut digest = Sha256::new();
    digest.update((parts.len() as u64).to_le_bytes());
    parts.iter().for_each(|part| digest.update(part));
    numbers.into_iter().for_each(|x| digest.update(x.to_bits().to_le_bytes()));
    digest.finalize().into()
}
