//! GPT-2: learned positions, layer norm, packed projections with biases, tanh GELU, a head tied to the embedding.

use std::path::Path;

use ombra_ir::Result;

use super::attention::{additive_mask, append, by_token, fused, inputs, outputs, sizes, split_heads};
use super::builder::{Builder, float, int, ints};
use super::random::Random;
use super::{Seeds, check, data_file};

/// Sizes of a GPT-2 model. The default is the smallest published one.
#[derive(Clone, Copy, Debug)]
pub struct Gpt2 {
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream, a multiple of the number of heads.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Token ids.
    pub vocab: usize,
    /// Positions of the learned table.
    pub positions: usize,
    /// Random weights.
    pub seeds: Seeds,
}

impl Default for Gpt2 {
    fn default() -> Self {
        Gpt2 { layers: 12, hidden: 768, heads: 12, vocab: 50257, positions: 1024, seeds: Seeds::default() }
    }
}

/// Writes the model to `path` and its weights to the file with `.data` added to the name.
///
/// # Errors
/// `E0900` for sizes that do not go together, `E0115` when a file cannot be written.
pub fn write_gpt2(sizes_of: &Gpt2, path: &Path) -> Result<()> {
    let Gpt2 { layers, hidden, heads, vocab, positions, seeds } = *sizes_of;
    check(
        &[
            ("--layers", layers),
            ("--hidden", hidden),
            ("--heads", heads),
            ("--vocab", vocab),
            ("--positions", positions),
        ],
        &[("--hidden", hidden, "--heads", heads)],
    )?;
    let head = hidden / heads;
    let mut b = Builder::new(&data_file(path), !seeds.no_weights)?;
    let cache = vec![(heads, head); layers];
    inputs(&mut b, &cache);
    b.enter("/transformer");
    let sizes = sizes(&mut b);
    let mask = additive_mask(&mut b, &sizes);
    let table = seeds.outer("lm_head.weight", 0.0, 0.02);
    let tokens = b.weight("lm_head.weight", &[vocab, hidden], table.values(vocab * hidden))?;
    let name = "transformer.wpe.weight";
    let places = b.weight(name, &[positions, hidden], seeds.outer(name, 0.0, 0.01).values(positions * hidden))?;
    let x = b.node("Gather", &[&tokens, "input_ids"], vec![int("axis", 0)]);
    let p = b.node("Gather", &[&places, "position_ids"], vec![int("axis", 0)]);
    let mut x = b.node("Add", &[&x, &p], vec![]);
    let by_head = by_token(&mut b, &sizes, &[-1, head as i64]);
    let shapes = Shapes {
        packed: by_token(&mut b, &sizes, &[3 * hidden as i64]),
        inner: by_token(&mut b, &sizes, &[4 * hidden as i64]),
        outer: by_token(&mut b, &sizes, &[hidden as i64]),
    };
    let residual = 0.02 / (2.0 * layers as f32).sqrt();
    for layer in 0..layers {
        let name = |part: &str| format!("transformer.h.{layer}.{part}");
        let weights = |name: &str, mean: f32, deviation: f32| seeds.layer(layer, name, mean, deviation);
        b.enter(format!("/transformer/h.{layer}/attn"));
        let y = layer_norm(&mut b, &x, &name("ln_1"), hidden, &weights)?;
        let y = linear(&mut b, &y, &name("attn.c_attn"), [hidden, 3 * hidden], &shapes.packed, 0.02, &weights)?;
        let parts: Vec<String> = ["q", "k", "v"].map(|part| format!("split_{layer}_{part}")).into();
        let names: Vec<&str> = parts.iter().map(String::as_str).collect();
        b.node_as("Split", &[&y], vec![int("axis", 2), int("num_outputs", 3)], &names);
        let [q, k, v] = [0, 1, 2].map(|i| split_heads(&mut b, names[i], &by_head));
        let (k, v) = (append(&mut b, layer, "key", &k), append(&mut b, layer, "value", &v));
        let y = fused(&mut b, &q, &k, &v, &mask, head);
        let y = b.node("Transpose", &[&y], vec![ints("perm", &[0, 2, 1, 3])]);
        let y = linear(&mut b, &y, &name("attn.c_proj"), [hidden, hidden], &shapes.outer, residual, &weights)?;
        x = b.node("Add", &[&y, &x], vec![]);
        b.enter(format!("/transformer/h.{layer}/mlp"));
        let y = layer_norm(&mut b, &x, &name("ln_2"), hidden, &weights)?;
        let y = linear(&mut b, &y, &name("mlp.c_fc"), [hidden, 4 * hidden], &shapes.inner, 0.02, &weights)?;
        let y = gelu(&mut b, &y);
        let y = linear(&mut b, &y, &name("mlp.c_proj"), [4 * hidden, hidden], &shapes.outer, residual, &weights)?;
        x = b.node("Add", &[&x, &y], vec![]);
    }
    b.enter("/transformer");
    let weights = |name: &str, mean: f32, deviation: f32| seeds.layer(layers, name, mean, deviation);
    let x = layer_norm(&mut b, &x, "transformer.ln_f", hidden, &weights)?;
    b.enter("/lm_head");
    let tied = b.transposed("lm_head.weight_t", [vocab, hidden], &table)?;
    b.node_as("MatMul", &[&x, &tied], vec![], &["logits"]);
    outputs(&mut b, &cache, vocab);
    b.finish(path)
}

/// Names of the shapes that products are brought back to.
struct Shapes {
    packed: String,
    inner: String,
    outer: String,
}

/// Layer norm with random scale and bias.
fn layer_norm(
    b: &mut Builder,
    x: &str,
    name: &str,
    hidden: usize,
    weights: &dyn Fn(&str, f32, f32) -> Random,
) -> Result<String> {
    let (scale, bias) = (format!("{name}.weight"), format!("{name}.bias"));
    b.weight(&scale, &[hidden], weights(&scale, 1.0, 0.05).values(hidden))?;
    b.weight(&bias, &[hidden], weights(&bias, 0.0, 0.02).values(hidden))?;
    let attributes = vec![int("axis", -1), float("epsilon", 1e-5), int("stash_type", 1)];
    Ok(b.node("LayerNormalization", &[x, &scale, &bias], attributes))
}

/// A product with an untransposed weight and a bias, over rows of tokens.
fn linear(
    b: &mut Builder,
    x: &str,
    name: &str,
    dims: [usize; 2],
    back: &str,
    deviation: f32,
    weights: &dyn Fn(&str, f32, f32) -> Random,
) -> Result<String> {
    let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
    b.weight(&weight, &dims, weights(&weight, 0.0, deviation).values(dims[0] * dims[1]))?;
    b.weight(&bias, &dims[1..], weights(&bias, 0.0, 0.02).values(dims[1]))?;
    let rows = b.ints(&[-1, dims[0] as i64]);
    let x = b.node("Reshape", &[x, &rows], vec![int("allowzero", 1)]);
    let attributes = vec![float("alpha", 1.0), float("beta", 1.0), int("transA", 0), int("transB", 0)];
    let y = b.node("Gemm", &[&x, &weight, &bias], attributes);
    Ok(b.node("Reshape", &[&y, back], vec![int("allowzero", 1)]))
}

/// The tanh form of GELU, operator by operator.
fn gelu(b: &mut Builder, x: &str) -> String {
    let (half, cube, factor) = (b.float(0.5), b.float(3.0), b.float(0.044715));
    let (root, one) = (b.float((2.0 / std::f64::consts::PI).sqrt() as f32), b.float(1.0));
    let halved = b.node("Mul", &[x, &half], vec![]);
    let y = b.node("Pow", &[x, &cube], vec![]);
    let y = b.node("Mul", &[&y, &factor], vec![]);
    let y = b.node("Add", &[x, &y], vec![]);
    let y = b.node("Mul", &[&y, &root], vec![]);
    let y = b.node("Tanh", &[&y], vec![]);
    let y = b.node("Add", &[&y, &one], vec![]);
    b.node("Mul", &[&halved, &y], vec![])
}
