//! Llama: rotary positions, RMS norm, grouped heads, gated SiLU, a head of its own or that of the embedding, no biases, or
//! those of queries, keys and values that make it a Qwen2.
//!
//! Also as MPC-friendly fine-tuning leaves it (Rathee et al., arXiv 2408.03561, §5): with frozen layers, with low-rank
//! adapters that are not merged into their matrices, with merged heads.

use std::path::Path;

use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::tensor_proto::DataType;
use protobuf::Enum;

use super::attention::{Sizes, additive_mask, append, by_token, fused, inputs, outputs, plain, sizes, split_heads};
use super::builder::{Builder, int, ints};
use super::random::Random;
use super::{Seeds, check, data_file};

/// Sizes of a Llama model. The default is a small one of about 100 million parameters.
#[derive(Clone, Copy, Debug)]
pub struct Llama {
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream, a multiple of the number of heads.
    pub hidden: usize,
    /// Attention heads, a multiple of the number of key and value heads.
    pub heads: usize,
    /// Heads of keys and values. Fewer than `heads` gives the form with copied heads.
    pub kv_heads: usize,
    /// Width of the feed-forward part.
    pub ff: usize,
    /// Token ids.
    pub vocab: usize,
    /// Base of the geometric series of rotary frequencies.
    pub theta: f64,
    /// What RMS norms add to the mean square.
    pub epsilon: f32,
    /// Whether the head is the transpose of the embedding.
    pub tied: bool,
    /// Whether queries, keys and values have biases.
    pub biases: bool,
    /// Rank of low-rank adapters beside every matrix of the tuned layers, of all if none is said to be tuned. Only the
    /// adapters are tuned then.
    pub lora: Option<usize>,
    /// How many neighbouring heads share one softmax in the tuned layers, or in all. Rotations stay those of the heads.
    pub merged: usize,
    /// Random weights.
    pub seeds: Seeds,
}

impl Default for Llama {
    fn default() -> Self {
        Llama {
            layers: 12,
            hidden: 768,
            heads: 12,
            kv_heads: 4,
            ff: 2048,
            vocab: 32000,
            theta: 10000.0,
            epsilon: 1e-6,
            tied: false,
            biases: false,
            lora: None,
            merged: 1,
            seeds: Seeds::default(),
        }
    }
}

/// Writes the model to `path` and its weights, which are random, to the file with `.data` added to the name.
///
/// # Errors
/// `E0900` for sizes that do not go together, `E0115` when a file cannot be written.
pub fn write_llama(sizes_of: &Llama, path: &Path) -> Result<()> {
    write(sizes_of, path, &Source::Random)
}

/// What gives the elements of the weight with a name and a shape, the last axis fastest.
pub type Given<'a> = &'a dyn Fn(&str, &[usize]) -> Result<Vec<f32>>;

/// Writes the model as [`write_llama`] does, with the weights that `given` has; adapters are random all the same. Weights
/// are called as transformers calls them; matrices but the embedding have a row for each input.
///
/// # Errors
/// Also those of `given`, and `E0900` when it gives another number of elements.
pub fn write_llama_with(sizes_of: &Llama, path: &Path, given: Given) -> Result<()> {
    write(sizes_of, path, &Source::Given(given))
}

/// Where weights come from.
enum Source<'a> {
    Random,
    Given(Given<'a>),
}

/// Writes the weight `name` of shape `dims` and returns its name; `random` is it where none is given.
fn weight(b: &mut Builder, source: &Source, name: &str, dims: &[usize], random: Random) -> Result<String> {
    let count = dims.iter().product();
    let Source::Given(given) = source else { return b.weight(name, dims, random.values(count)) };
    let values = given(name, dims)?;
    if values.len() != count {
        return Err(Diagnostic::input("E0900", format!("{name} has {} elements, expected {count}", values.len())));
    }
    b.weight(name, dims, values.into_iter())
}

fn write(sizes_of: &Llama, path: &Path, source: &Source) -> Result<()> {
    let Llama { layers, hidden, heads, kv_heads, ff, vocab, lora, merged, seeds, .. } = *sizes_of;
    // With adapters the matrices are those of the base.
    let base = Seeds { tuned_from: seeds.tuned_from.filter(|_| lora.is_none()), ..seeds };
    let tuned = |layer: usize| seeds.tuned_from.is_none_or(|first| layer >= first);
    check(
        &[
            ("--layers", layers),
            ("--hidden", hidden),
            ("--heads", heads),
            ("--kv-heads", kv_heads),
            ("--ff", ff),
            ("--vocab", vocab),
            ("--lora", lora.unwrap_or(1)),
            ("--merged", merged),
        ],
        &[
            ("--hidden", hidden, "--heads", heads),
            ("--heads", heads, "--kv-heads", kv_heads),
            ("--kv-heads", kv_heads, "--merged", merged),
        ],
    )?;
    if merged > 1 && kv_heads != heads {
        let message = "only heads with keys of their own are merged here";
        return Err(Diagnostic::input("E0900", message).note("expected --kv-heads as many as --heads"));
    }
    let head = hidden / heads;
    if head % 2 != 0 {
        return Err(Diagnostic::input(
            "E0900",
            format!("a head has {head} elements, rotary positions need an even number"),
        ));
    }
    let mut b = Builder::new(&data_file(path), !seeds.no_weights)?;
    let cache: Vec<(usize, usize)> =
        (0..layers).map(|l| if tuned(l) { (kv_heads / merged, head * merged) } else { (kv_heads, head) }).collect();
    inputs(&mut b, &cache);
    b.enter("/model");
    let sizes = sizes(&mut b);
    let mask = additive_mask(&mut b, &sizes);
    let rotary = angles(&mut b, head, sizes_of.theta);
    let name = "model.embed_tokens.weight";
    let tokens = weight(&mut b, source, name, &[vocab, hidden], base.outer(name, 0.0, 0.02))?;
    let mut x = b.node("Gather", &[&tokens, "input_ids"], vec![int("axis", 0)]);
    let by_head = by_token(&mut b, &sizes, &[-1, head as i64]);
    let merged = by_token(&mut b, &sizes, &[-1]);
    let residual = 0.02 / (2.0 * layers as f32).sqrt();
    let kv = kv_heads * head;
    for (layer, &(groups, width)) in cache.iter().enumerate() {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let norm = |b: &mut Builder, x: &str, part: &str| -> Result<String> {
            let name = name(part);
            let scale = weight(b, source, &name, &[hidden], base.layer(layer, &name, 1.0, 0.05))?;
            Ok(rms_norm(b, x, &scale, sizes_of.epsilon))
        };
        let rank = lora.filter(|_| tuned(layer));
        let product = |b: &mut Builder, x: &str, part: &str, dims: [usize; 2], deviation: f32| -> Result<String> {
            let name = name(part);
            let matrix = weight(b, source, &name, &dims, base.layer(layer, &name, 0.0, deviation))?;
            let y = b.node("MatMul", &[x, &matrix], vec![]);
            let Some(rank) = rank else { return Ok(y) };
            let [down, up] = ["lora_A", "lora_B"].map(|side| format!("model.layers.{layer}.{part}.{side}.weight"));
            let own = &Source::Random;
            let down = weight(b, own, &down, &[dims[0], rank], seeds.own(&down, 0.02))?;
            let up = weight(b, own, &up, &[rank, dims[1]], seeds.own(&up, 0.01))?;
            let low = b.node("MatMul", &[x, &down], vec![]);
            let change = b.node("MatMul", &[&low, &up], vec![]);
            let scale = b.float(ADAPTER_SCALE);
            let change = b.node("Mul", &[&change, &scale], vec![]);
            Ok(b.node("Add", &[&y, &change], vec![]))
        };
        let biased = |b: &mut Builder, x: &str, part: &str, width: usize| -> Result<String> {
            let y = product(b, x, part, [hidden, width], 0.02)?;
            if !sizes_of.biases {
                return Ok(y);
            }
            let name = format!("model.layers.{layer}.{part}.bias");
            let bias = weight(b, source, &name, &[width], base.layer(layer, &name, 0.0, 0.02))?;
            Ok(b.node("Add", &[&y, &bias], vec![]))
        };
        b.enter(format!("/model/layers.{layer}/self_attn"));
        let y = norm(&mut b, &x, "input_layernorm")?;
        let q = biased(&mut b, &y, "self_attn.q_proj", hidden)?;
        let q = split_heads(&mut b, &q, &by_head);
        let k = biased(&mut b, &y, "self_attn.k_proj", kv)?;
        let k = split_heads(&mut b, &k, &by_head);
        let v = biased(&mut b, &y, "self_attn.v_proj", kv)?;
        let by_group = if groups == kv_heads { by_head.clone() } else { by_token(&mut b, &sizes, &[-1, width as i64]) };
        let v = split_heads(&mut b, &v, &by_group);
        let mut q = rotate(&mut b, &q, &rotary, head);
        let mut k = rotate(&mut b, &k, &rotary, head);
        if groups != kv_heads {
            (q, k) = (join_heads(&mut b, &q, &by_group), join_heads(&mut b, &k, &by_group));
        }
        let (k, v) = (append(&mut b, layer, "key", &k), append(&mut b, layer, "value", &v));
        let y = if kv_heads == heads {
            plain(&mut b, &q, &k, &v, &mask, width)
        } else {
            let k = copy_heads(&mut b, &k, &sizes, [kv_heads, heads, head]);
            let v = copy_heads(&mut b, &v, &sizes, [kv_heads, heads, head]);
            fused(&mut b, &q, &k, &v, &mask, head)
        };
        let y = b.node("Transpose", &[&y], vec![ints("perm", &[0, 2, 1, 3])]);
        let y = b.node("Reshape", &[&y, &merged], vec![int("allowzero", 1)]);
        let y = product(&mut b, &y, "self_attn.o_proj", [hidden, hidden], residual)?;
        x = b.node("Add", &[&x, &y], vec![]);
        b.enter(format!("/model/layers.{layer}/mlp"));
        let y = norm(&mut b, &x, "post_attention_layernorm")?;
        let gate = product(&mut b, &y, "mlp.gate_proj", [hidden, ff], 0.02)?;
        let sigmoid = b.node("Sigmoid", &[&gate], vec![]);
        let gate = b.node("Mul", &[&gate, &sigmoid], vec![]);
        let up = product(&mut b, &y, "mlp.up_proj", [hidden, ff], 0.02)?;
        let y = b.node("Mul", &[&gate, &up], vec![]);
        let y = product(&mut b, &y, "mlp.down_proj", [ff, hidden], residual)?;
        x = b.node("Add", &[&x, &y], vec![]);
    }
    b.enter("/model");
    let name = "model.norm.weight";
    let scale = weight(&mut b, source, name, &[hidden], base.layer(layers, name, 1.0, 0.05))?;
    let x = rms_norm(&mut b, &x, &scale, sizes_of.epsilon);
    b.enter("/lm_head");
    let head = if sizes_of.tied {
        b.node("Transpose", &[&tokens], vec![ints("perm", &[1, 0])])
    } else {
        let name = "lm_head.weight";
        weight(&mut b, source, name, &[hidden, vocab], base.layer(layers, name, 0.0, 0.02))?
    };
    b.node_as("MatMul", &[&x, &head], vec![], &["logits"]);
    outputs(&mut b, &cache, vocab);
    b.finish(path)
}

/// What the product of the two factors of an adapter is multiplied by.
const ADAPTER_SCALE: f32 = 2.0;

/// `[batch, heads, sequence, head]` as `[batch, groups, sequence, heads of a group * head]`, `shape` being that of groups.
fn join_heads(b: &mut Builder, x: &str, shape: &str) -> String {
    let x = b.node("Transpose", &[x], vec![ints("perm", &[0, 2, 1, 3])]);
    split_heads(b, &x, shape)
}

/// Names of the cosines and sines of all rotary angles, `[batch, 1, sequence, head]`.
struct Rotary {
    cos: String,
    sin: String,
}

/// The rotary angles of `position_ids`.
fn angles(b: &mut Builder, head: usize, theta: f64) -> Rotary {
    let frequency = |i: usize| theta.powf(-(2.0 * i as f64) / head as f64) as f32;
    let frequencies = b.floats(&(0..head / 2).map(frequency).collect::<Vec<_>>());
    let (second, first) = (b.ints(&[2]), b.ints(&[1]));
    let positions = b.node("Unsqueeze", &["position_ids", &second], vec![]);
    let positions = b.node("Cast", &[&positions], vec![int("to", i64::from(DataType::FLOAT.value()))]);
    let half = b.node("Mul", &[&positions, &frequencies], vec![]);
    let angles = b.node("Concat", &[&half, &half], vec![int("axis", -1)]);
    let [cos, sin] = ["Cos", "Sin"].map(|op| {
        let table = b.node(op, &[&angles], vec![]);
        b.node("Unsqueeze", &[&table, &first], vec![])
    });
    Rotary { cos, sin }
}

/// Turns the halves of each head of `x` by the angles of its position.
fn rotate(b: &mut Builder, x: &str, rotary: &Rotary, head: usize) -> String {
    let (start, middle, end) = (b.ints(&[0]), b.ints(&[head as i64 / 2]), b.ints(&[i64::MAX]));
    let (axis, step) = (b.ints(&[3]), b.ints(&[1]));
    let straight = b.node("Mul", &[x, &rotary.cos], vec![]);
    let low = b.node("Slice", &[x, &start, &middle, &axis, &step], vec![]);
    let high = b.node("Slice", &[x, &middle, &end, &axis, &step], vec![]);
    let high = b.node("Neg", &[&high], vec![]);
    let turned = b.node("Concat", &[&high, &low], vec![int("axis", -1)]);
    let turned = b.node("Mul", &[&turned, &rotary.sin], vec![]);
    b.node("Add", &[&straight, &turned], vec![])
}

/// Repeats each head of keys or values for the query heads of its group. The sizes are key heads, heads, head size.
fn copy_heads(b: &mut Builder, x: &str, sizes: &Sizes, [kv_heads, heads, head]: [usize; 3]) -> String {
    let (second, groups) = (b.ints(&[2]), b.ints(&[kv_heads as i64]));
    let (copies, width, all) = (b.ints(&[(heads / kv_heads) as i64]), b.ints(&[head as i64]), b.ints(&[heads as i64]));
    let x = b.node("Unsqueeze", &[x, &second], vec![]);
    let shape = b.node("Concat", &[&sizes.batch, &groups, &copies, &sizes.total, &width], vec![int("axis", 0)]);
    let x = b.node("Expand", &[&x, &shape], vec![]);
    let shape = b.node("Concat", &[&sizes.batch, &all, &sizes.total, &width], vec![int("axis", 0)]);
    b.node("Reshape", &[&x, &shape], vec![int("allowzero", 1)])
}

/// RMS norm, operator by operator.
fn rms_norm(b: &mut Builder, x: &str, scale: &str, epsilon: f32) -> String {
    let (two, last, epsilon) = (b.float(2.0), b.ints(&[-1]), b.float(epsilon));
    let y = b.node("Pow", &[x, &two], vec![]);
    let y = b.node("ReduceMean", &[&y, &last], vec![int("keepdims", 1), int("noop_with_empty_axes", 0)]);
    let y = b.node("Add", &[&y, &epsilon], vec![]);
    let y = b.node("Sqrt", &[&y], vec![]);
    let y = b.node("Reciprocal", &[&y], vec![]);
    let y = b.node("Mul", &[x, &y], vec![]);
    b.node("Mul", &[scale, &y], vec![])
}
