//! BERT: learned positions, norms behind the residual sums, GELU by the error function, a classifier over the first token.

use std::path::Path;

use ombra_ir::Result;
use onnx_protobuf::tensor_proto::DataType;
use protobuf::Enum;

use super::attention::plain;
use super::builder::{Builder, Size, float, int, ints};
use super::random::Random;
use super::{Seeds, check, data_file};

/// What is added to scores of padding.
const MASKED: f32 = f32::MIN;

/// Sizes of a BERT model. The default is the smaller published one, with two classes.
#[derive(Clone, Copy, Debug)]
pub struct Bert {
    /// Encoder layers.
    pub layers: usize,
    /// Width of the residual stream, a multiple of the number of heads.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Token ids.
    pub vocab: usize,
    /// Positions of the learned table.
    pub positions: usize,
    /// Classes of the classifier.
    pub classes: usize,
    /// Random weights.
    pub seeds: Seeds,
}

impl Default for Bert {
    fn default() -> Self {
        Bert { layers: 12, hidden: 768, heads: 12, vocab: 30522, positions: 512, classes: 2, seeds: Seeds::default() }
    }
}

/// A model under construction, and which weights it gets.
struct Writer<'a> {
    b: Builder,
    weights: &'a dyn Fn(&str, f32, f32) -> Random,
}

/// Writes the model to `path` and its weights to the file with `.data` added to the name. Its inputs are `input_ids`,
/// `attention_mask` and `token_type_ids`, each `[batch, sequence]`; its output `logits` is `[batch, classes]`.
///
/// # Errors
/// `E0900` for sizes that do not go together, `E0115` when a file cannot be written.
pub fn write_bert(sizes: &Bert, path: &Path) -> Result<()> {
    let Bert { layers, hidden, heads, vocab, positions, classes, seeds } = *sizes;
    check(
        &[
            ("--layers", layers),
            ("--hidden", hidden),
            ("--heads", heads),
            ("--vocab", vocab),
            ("--positions", positions),
            ("--classes", classes),
        ],
        &[("--hidden", hidden, "--heads", heads)],
    )?;
    let outer = |name: &str, mean: f32, deviation: f32| seeds.outer(name, mean, deviation);
    let mut w = Writer { b: Builder::new(&data_file(path), !seeds.no_weights)?, weights: &outer };
    for name in ["input_ids", "attention_mask", "token_type_ids"] {
        w.b.input(name, DataType::INT64, &[Size::Symbol("batch"), Size::Symbol("sequence")]);
    }
    w.b.enter("/bert/embeddings");
    let mut x = w.embeddings(sizes)?;
    let mask = w.mask();
    for layer in 0..layers {
        let of_layer = |name: &str, mean: f32, deviation: f32| seeds.layer(layer, name, mean, deviation);
        let mut inner = Writer { b: w.b, weights: &of_layer };
        x = inner.layer(&x, &mask, layer, [hidden, heads])?;
        w.b = inner.b;
    }
    let of_head = |name: &str, mean: f32, deviation: f32| seeds.layer(layers, name, mean, deviation);
    let mut w = Writer { b: w.b, weights: &of_head };
    w.b.enter("/bert/pooler");
    let zero = w.b.int(0);
    let first = w.b.node("Gather", &[&x, &zero], vec![int("axis", 1)]);
    let pooled = w.gemm(&first, "bert.pooler.dense", [hidden, hidden], "pooled_rows")?;
    let pooled = w.b.node("Tanh", &[&pooled], vec![]);
    w.b.enter("/classifier");
    w.gemm(&pooled, "classifier", [hidden, classes], "logits")?;
    w.b.output("logits", DataType::FLOAT, &[Size::Symbol("batch"), Size::Fixed(classes)]);
    w.b.finish(path)
}

impl Writer<'_> {
    /// The sum of the embeddings of tokens, positions and segments, normed.
    fn embeddings(&mut self, sizes: &Bert) -> Result<String> {
        let Bert { hidden, vocab, positions, .. } = *sizes;
        let tokens = self.weight("bert.embeddings.word_embeddings.weight", &[vocab, hidden], 0.0, 0.05)?;
        let places = self.weight("bert.embeddings.position_embeddings.weight", &[positions, hidden], 0.0, 0.02)?;
        let segments = self.weight("bert.embeddings.token_type_embeddings.weight", &[2, hidden], 0.0, 0.02)?;
        let t = self.b.node("Gather", &[&tokens, "input_ids"], vec![int("axis", 0)]);
        let s = self.b.node("Gather", &[&segments, "token_type_ids"], vec![int("axis", 0)]);
        let length = self.b.node("Shape", &["input_ids"], vec![int("start", 1), int("end", 2)]);
        let (start, axis) = (self.b.ints(&[0]), self.b.ints(&[0]));
        let p = self.b.node("Slice", &[&places, &start, &length, &axis], vec![]);
        let x = self.b.node("Add", &[&t, &s], vec![]);
        let x = self.b.node("Add", &[&x, &p], vec![]);
        self.norm(&x, "bert.embeddings.LayerNorm", hidden)
    }

    /// What is added to scores: nothing, or the least number where a position is padding.
    fn mask(&mut self) -> String {
        let around = self.b.ints(&[1, 2]);
        let mask = self.b.node("Unsqueeze", &["attention_mask", &around], vec![]);
        let mask = self.b.node("Cast", &[&mask], vec![int("to", i64::from(DataType::FLOAT.value()))]);
        let (one, least) = (self.b.float(1.0), self.b.float(MASKED));
        let mask = self.b.node("Sub", &[&one, &mask], vec![]);
        self.b.node("Mul", &[&mask, &least], vec![])
    }

    /// One encoder layer.
    fn layer(&mut self, x: &str, mask: &str, layer: usize, [hidden, heads]: [usize; 2]) -> Result<String> {
        let name = |part: &str| format!("bert.encoder.layer.{layer}.{part}");
        self.b.enter(format!("/bert/encoder/layer.{layer}/attention"));
        let by_head = self.b.ints(&[0, -1, heads as i64, (hidden / heads) as i64]);
        let [q, k, v] = ["query", "key", "value"].map(|part| -> Result<String> {
            let y = self.linear(x, &name(&format!("attention.self.{part}")), [hidden, hidden], 0.05)?;
            let y = self.b.node("Reshape", &[&y, &by_head], vec![int("allowzero", 0)]);
            Ok(self.b.node("Transpose", &[&y], vec![ints("perm", &[0, 2, 1, 3])]))
        });
        let y = plain(&mut self.b, &q?, &k?, &v?, mask, hidden / heads);
        let y = self.b.node("Transpose", &[&y], vec![ints("perm", &[0, 2, 1, 3])]);
        let whole = self.b.ints(&[0, -1, hidden as i64]);
        let y = self.b.node("Reshape", &[&y, &whole], vec![int("allowzero", 0)]);
        let y = self.linear(&y, &name("attention.output.dense"), [hidden, hidden], 0.02)?;
        let y = self.b.node("Add", &[&y, x], vec![]);
        let x = self.norm(&y, &name("attention.output.LayerNorm"), hidden)?;
        self.b.enter(format!("/bert/encoder/layer.{layer}/output"));
        let y = self.linear(&x, &name("intermediate.dense"), [hidden, 4 * hidden], 0.02)?;
        let y = self.gelu(&y);
        let y = self.linear(&y, &name("output.dense"), [4 * hidden, hidden], 0.02)?;
        let y = self.b.node("Add", &[&y, &x], vec![]);
        self.norm(&y, &name("output.LayerNorm"), hidden)
    }

    /// The form of GELU with the error function, operator by operator.
    fn gelu(&mut self, x: &str) -> String {
        let (root, one, half) = (self.b.float(std::f32::consts::SQRT_2), self.b.float(1.0), self.b.float(0.5));
        let y = self.b.node("Div", &[x, &root], vec![]);
        let y = self.b.node("Erf", &[&y], vec![]);
        let y = self.b.node("Add", &[&y, &one], vec![]);
        let y = self.b.node("Mul", &[x, &y], vec![]);
        self.b.node("Mul", &[&y, &half], vec![])
    }

    /// A product over rows of tokens, and a bias.
    fn linear(&mut self, x: &str, name: &str, dims: [usize; 2], deviation: f32) -> Result<String> {
        let weight = self.weight(&format!("{name}.weight"), &dims, 0.0, deviation)?;
        let bias = self.weight(&format!("{name}.bias"), &dims[1..], 0.0, 0.02)?;
        let y = self.b.node("MatMul", &[x, &weight], vec![]);
        Ok(self.b.node("Add", &[&bias, &y], vec![]))
    }

    /// A product of `[batch, dims[0]]` and a bias, as the value `to`.
    fn gemm(&mut self, x: &str, name: &str, dims: [usize; 2], to: &str) -> Result<String> {
        let weight = self.weight(&format!("{name}.weight"), &[dims[1], dims[0]], 0.0, 0.05)?;
        let bias = self.weight(&format!("{name}.bias"), &dims[1..], 0.0, 0.02)?;
        let attributes = vec![float("alpha", 1.0), float("beta", 1.0), int("transB", 1)];
        self.b.node_as("Gemm", &[x, &weight, &bias], attributes, &[to]);
        Ok(to.to_owned())
    }

    /// Layer norm with random scale and bias.
    fn norm(&mut self, x: &str, name: &str, hidden: usize) -> Result<String> {
        let scale = self.weight(&format!("{name}.weight"), &[hidden], 1.0, 0.05)?;
        let bias = self.weight(&format!("{name}.bias"), &[hidden], 0.0, 0.02)?;
        let attributes = vec![int("axis", -1), float("epsilon", 1e-12), int("stash_type", 1)];
        Ok(self.b.node("LayerNormalization", &[x, &scale, &bias], attributes))
    }

    /// A random weight.
    fn weight(&mut self, name: &str, dims: &[usize], mean: f32, deviation: f32) -> Result<String> {
        let values = (self.weights)(name, mean, deviation).values(dims.iter().product());
        self.b.weight(name, dims, values)
    }
}
