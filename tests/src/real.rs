//! A folder with a trained model, as exporters write it, and its plan in the clear or between parties, row by row.

use std::collections::BTreeMap;
use std::path::Path;

use ombra_compiler::onnx::Model;
use ombra_compiler::output::reveal::Reveal;
use ombra_compiler::pipeline::{Compiled, Options, compile};
use ombra_compiler::self_test::clear;
use ombra_compiler::{import, output};
use ombra_ir::draw::Way;
use ombra_ir::folder;
use ombra_ir::module::{Id, Module};
use ombra_ir::op::Op;
use ombra_ir::plain::Tensor;
use ombra_ir::plan::InputRole;
use ombra_ir::reference::{RefData, RefValue, Rounding, signed};
use ombra_ir::ty::{BoundFrom, Ty};
use ombra_ir::{Diagnostic, Result};
use ombra_runtime::app::{PlanFolder, Request};

use crate::built::{Folder, logits};
use crate::parties;

/// Where the numbers of roundings begin.
const SEED: u64 = 0x0b5e_55ed;

/// A compiled model whose weights are all private.
pub struct Real {
    compiled: Compiled,
    model: Model,
    plan: PlanFolder,
    // The last field: removed after all else is closed.
    _folder: Folder,
}

/// Which of the two ways a plan is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// In the clear, by the meaning of its ops. Every value is compared with its declared bound.
    Nobody,
    /// Three threads, each of a party.
    Parties,
}

/// What is revealed after rows of tokens.
pub enum Revealed {
    /// Logits of every position of every row.
    Logits(Vec<f32>),
    /// The next token of every row.
    NextTokens {
        /// One for every row.
        tokens: Vec<i64>,
        /// The logits that they are chosen from, row by row, where the plan runs in the clear.
        scores: Vec<f32>,
    },
}

impl Real {
    /// Compiles the model in `folder` by default options, all logits revealed or the next token alone. Up to `batch` rows run
    /// at once.
    ///
    /// # Errors
    /// The first error of the compiler, or a plan folder that the runtime does not open.
    pub fn compile(folder: &Path, all_logits: bool, batch: u64) -> Result<Real> {
        let model = Model::read(&folder.join("model.onnx"))?;
        let name = model.graph().input.iter().find(|input| input.name == "input_ids").and_then(first_symbol);
        let max = name.into_iter().map(|name| (name, batch)).collect();
        let sizes = import::Options { max, ..import::Options::default() };
        let reveal: Vec<Reveal> = if all_logits { logits() } else { Vec::new() };
        let options = Options { sizes, reveal, ..Options::default() };
        let first = |errors: Vec<Diagnostic>| errors.into_iter().next();
        let mut compiled = compile(&model, None, &options).map_err(|errors| {
            first(errors).unwrap_or_else(|| Diagnostic::internal("E0000", "the compiler failed without an error"))
        })?;
        let written = Folder::new()?;
        output::write(&mut compiled, &model, &[(folder::TOKENIZER, folder.join("tokenizer.json"))], written.path())?;
        let plan = PlanFolder::open(written.path())?;
        Ok(Real { compiled, model, plan, _folder: written })
    }

    /// The plan folder.
    pub fn plan(&self) -> &PlanFolder {
        &self.plan
    }

    /// What the plan reveals after `rows` of tokens of one length.
    ///
    /// # Errors
    /// Rows that the plan cannot take; whatever ended a session.
    pub fn run(&self, rows: &[Vec<i64>], between: Between) -> Result<Revealed> {
        match between {
            Between::Nobody => self.in_the_clear(rows),
            Between::Parties => self.between_parties(rows),
        }
    }

    /// Every input of the model for `rows` and an empty cache.
    fn inputs(&self, rows: &[Vec<i64>]) -> Result<BTreeMap<String, Tensor>> {
        let (batch, length) = (rows.len(), rows.first().map_or(0, Vec::len));
        let shape = [batch, length];
        let mut inputs = BTreeMap::new();
        for input in &self.plan.plan.graph_inputs {
            let tensor = match input.role {
                InputRole::TokenIds => Tensor::i64(&shape, rows.concat())?,
                InputRole::AttentionMask => Tensor::i64(&shape, vec![1; batch * length])?,
                InputRole::PositionIds => Tensor::i64(&shape, (0..length as i64).collect::<Vec<_>>().repeat(batch))?,
                InputRole::PastKey { .. } | InputRole::PastValue { .. } => {
                    let fixed = |axis: usize| input.shape.get(axis).and_then(|dim| dim.as_constant());
                    let fixed = |axis: usize| fixed(axis).map_or(0, |size| size as usize);
                    Tensor::f32(&[batch, fixed(1), 0, fixed(3)], Vec::new())?
                }
                InputRole::Embeddings | InputRole::Public | InputRole::Other => {
                    return Err(Diagnostic::input("E0000", format!("`{}` has no default", input.name)));
                }
            };
            inputs.insert(input.name.clone(), tensor);
        }
        Ok(inputs)
    }

    fn in_the_clear(&self, rows: &[Vec<i64>]) -> Result<Revealed> {
        let module = &self.plan.plan.module;
        let none = || Diagnostic::internal("E0000", "nothing is revealed");
        let reveal = module.ops.iter().find(|node| matches!(node.op, Op::Reveal { .. })).ok_or_else(none)?;
        let revealed = *reveal.args.first().ok_or_else(none)?;
        // Tokens are chosen from the operand of the choice.
        let chosen = matches!(module.node(revealed).op, Op::ArgMax { .. });
        let scores_at = if chosen { *module.node(revealed).args.first().ok_or_else(none)? } else { revealed };
        let mut scores: Vec<f32> = Vec::new();
        let mut bounds = Bounds { module, outside: vec![false; module.ops.len()] };
        let mut see = |id: Id, value: &RefValue| {
            bounds.see(id, value)?;
            let ty = module.ty(id);
            if id == scores_at {
                let (_, scale) = ty.as_ring().ok_or_else(none)?;
                scores = value.decode(scale)?.into_iter().map(|value| value as f32).collect();
            }
            Ok(())
        };
        let rounding = Rounding::Drawn { seed: SEED };
        let outcome = clear::step_seen(&self.compiled, &self.model, &self.inputs(rows)?, rounding, &mut see)?;
        if !chosen {
            return Ok(Revealed::Logits(scores));
        }
        let value = outcome.outputs.into_iter().next().flatten().ok_or_else(none)?;
        let (_, words) = value.as_ring()?;
        Ok(Revealed::NextTokens { tokens: words.iter().map(|&word| word as i64).collect(), scores })
    }

    fn between_parties(&self, rows: &[Vec<i64>]) -> Result<Revealed> {
        if !self.reveals_tokens() {
            return Ok(Revealed::Logits(parties::secret_logits(&self.plan, rows)?.concat()));
        }
        let prompt = rows.first().map_or(0, Vec::len);
        let request =
            Request::Generate { padding: vec![0; rows.len()], positions: prompt as u64, ways: vec![Way::default()] };
        let ids = Tensor::i64(&[rows.len(), prompt], rows.concat())?;
        let name = self.plan.plan.graph_inputs.iter().find(|input| input.role == InputRole::TokenIds);
        let name = name.map(|input| input.name.clone()).unwrap_or_default();
        let [client, ..] = parties::run(&self.plan, &request, &[vec![(name, ids)]])?;
        let opened = client.steps.into_iter().next().and_then(|seen| seen.opened.into_iter().next());
        let opened = opened.ok_or_else(|| Diagnostic::internal("E0000", "nothing is revealed"))?;
        Ok(Revealed::NextTokens { tokens: opened.values, scores: Vec::new() })
    }

    fn reveals_tokens(&self) -> bool {
        let outputs = &self.plan.plan.module.outputs;
        outputs.iter().any(|output| output.kind == ombra_ir::module::OutputKind::NextToken)
    }
}

/// Compares values with their declared bounds.
struct Bounds<'a> {
    module: &'a Module,
    /// Ops with an element outside of the declared bound.
    outside: Vec<bool>,
}

impl Bounds<'_> {
    /// An error where an element is not in its declared bound. What is outside the range of a formula, and what follows
    /// from it up to the product by zero that removes it, may leave theirs.
    fn see(&mut self, id: Id, value: &RefValue) -> Result<()> {
        let (RefData::Ring { bits, values }, node) = (&value.data, self.module.node(id)) else { return Ok(()) };
        let Ty { bound, bound_from, .. } = node.ty;
        let greatest = values.iter().map(|&word| signed(word, *bits).unsigned_abs()).max().unwrap_or(0);
        if greatest.checked_shr(bound.into()).unwrap_or(0) == 0 {
            return Ok(());
        }
        let may = match bound_from {
            BoundFrom::Guarded => true,
            BoundFrom::Proven => node.args.iter().any(|arg| self.outside[arg.index()]),
            BoundFrom::Weights | BoundFrom::Calibrated => false,
        };
        if may {
            self.outside[id.index()] = true;
            return Ok(());
        }
        Err(Diagnostic::internal("E0000", "a value has left its declared bound")
            .note(format!("expected  less than 2^{bound}, {}", bound_from.name()))
            .note(format!("found     {greatest}")))
    }
}

/// The name of the first size of a declared input, where it has one.
fn first_symbol(input: &onnx_protobuf::ValueInfoProto) -> Option<String> {
    let shape = &input.type_.tensor_type().shape;
    shape.dim.first().filter(|dim| dim.has_dim_param()).map(|dim| dim.dim_param().to_owned())
}
