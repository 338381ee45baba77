//! What both families share: sizes, the causal mask, and attention over a cache.

use onnx_protobuf::tensor_proto::DataType;
use protobuf::Enum;

use super::builder::{Builder, Size, int, ints};

/// What masks, the softmax of masked scores and padding are made of.
const MASKED: f32 = f32::MIN;

/// Names of the values that hold the sizes of a run.
pub(super) struct Sizes {
    /// `[batch]`, one element.
    pub(super) batch: String,
    /// `[sequence]`, one element.
    pub(super) sequence: String,
    /// `[past + sequence]`, one element.
    pub(super) total: String,
    /// `[batch, 1, sequence, past + sequence]`: whether a position sees another.
    pub(super) sees: String,
}

/// Declares the inputs of a cached decoder: for each layer, heads in the cache and their size.
pub(super) fn inputs(b: &mut Builder, layers: &[(usize, usize)]) {
    let (batch, sequence) = (Size::Symbol("batch"), Size::Symbol("sequence"));
    b.input("input_ids", DataType::INT64, &[batch, sequence]);
    b.input("attention_mask", DataType::INT64, &[batch, Size::Symbol("total")]);
    b.input("position_ids", DataType::INT64, &[batch, sequence]);
    for (layer, &(heads, head)) in layers.iter().enumerate() {
        for part in ["key", "value"] {
            let shape = [batch, Size::Fixed(heads), Size::Symbol("past"), Size::Fixed(head)];
            b.input(&format!("past_key_values.{layer}.{part}"), DataType::FLOAT, &shape);
        }
    }
}

/// Declares the outputs of a cached decoder: for each layer, heads in the cache and their size.
pub(super) fn outputs(b: &mut Builder, layers: &[(usize, usize)], vocabulary: usize) {
    let batch = Size::Symbol("batch");
    b.output("logits", DataType::FLOAT, &[batch, Size::Symbol("sequence"), Size::Fixed(vocabulary)]);
    for (layer, &(heads, head)) in layers.iter().enumerate() {
        for part in ["key", "value"] {
            let shape = [batch, Size::Fixed(heads), Size::Symbol("past + sequence"), Size::Fixed(head)];
            b.output(&format!("present.{layer}.{part}"), DataType::FLOAT, &shape);
        }
    }
}

/// The sizes and the causal mask, which also hides padding.
pub(super) fn sizes(b: &mut Builder) -> Sizes {
    let sequence = b.node("Shape", &["input_ids"], vec![int("start", 1), int("end", 2)]);
    let new = b.node("Squeeze", &[&sequence], vec![]);
    let past = b.node("Shape", &["past_key_values.0.key"], vec![int("start", 2), int("end", 3)]);
    let past = b.node("Squeeze", &[&past], vec![]);
    let batch = b.node("Shape", &["past_key_values.0.key"], vec![int("start", 0), int("end", 1)]);
    let rows = b.node("Squeeze", &[&batch], vec![]);
    let all = b.node("Add", &[&past, &new], vec![]);
    let (zero, one) = (b.int(0), b.int(1));
    let (last, first) = (b.ints(&[-1]), b.ints(&[0, 1]));
    let (second, third, around) = (b.ints(&[2]), b.ints(&[3]), b.ints(&[1, 2]));
    let given = b.node("Cast", &["attention_mask"], vec![int("to", i64::from(DataType::BOOL.value()))]);
    let row = b.node("Range", &[&zero, &rows, &one], vec![]);
    let query = b.node("Range", &[&zero, &new, &one], vec![]);
    let query = b.node("Add", &[&query, &past], vec![]);
    let key = b.node("Range", &[&zero, &all, &one], vec![]);
    let row = b.node("Unsqueeze", &[&row, &around], vec![]);
    let row = b.node("Unsqueeze", &[&row, &third], vec![]);
    let query = b.node("Unsqueeze", &[&query, &first], vec![]);
    let query = b.node("Unsqueeze", &[&query, &third], vec![]);
    let key = b.node("Unsqueeze", &[&key, &first], vec![]);
    let key = b.node("Unsqueeze", &[&key, &second], vec![]);
    let causal = b.node("LessOrEqual", &[&key, &query], vec![]);
    let always = b.boolean(true);
    let causal = b.node("And", &[&always, &causal], vec![]);
    let larger = b.node("Max", &[&row, &key], vec![]);
    let shape = b.node("Shape", &[&larger], vec![int("start", 0)]);
    let row = b.node("Expand", &[&row, &shape], vec![]);
    let row = b.node("Unsqueeze", &[&row, &last], vec![]);
    let key = b.node("Expand", &[&key, &shape], vec![]);
    let key = b.node("Unsqueeze", &[&key, &last], vec![]);
    let at = b.node("Concat", &[&row, &key], vec![int("axis", -1)]);
    let given = b.node("GatherND", &[&given, &at], vec![int("batch_dims", 0)]);
    let sees = b.node("And", &[&causal, &given], vec![]);
    let total = b.node("Reshape", &[&all, &last], vec![int("allowzero", 0)]);
    let single = b.ints(&[1]);
    let shape = b.node("Concat", &[&batch, &single, &sequence, &total], vec![int("axis", 0)]);
    let sees = b.node("Expand", &[&sees, &shape], vec![]);
    Sizes { batch, sequence, total, sees }
}

/// The mask as numbers to be added to scores.
pub(super) fn additive_mask(b: &mut Builder, sizes: &Sizes) -> String {
    let (seen, masked) = (b.float(0.0), b.float(MASKED));
    b.node("Where", &[&sizes.sees, &seen, &masked], vec![])
}

/// The shape `[batch, sequence]` followed by `rest`.
pub(super) fn by_token(b: &mut Builder, sizes: &Sizes, rest: &[i64]) -> String {
    let rest: Vec<String> = rest.iter().map(|&n| b.ints(&[n])).collect();
    let parts: Vec<&str> = [&sizes.batch, &sizes.sequence].into_iter().chain(&rest).map(String::as_str).collect();
    b.node("Concat", &parts, vec![int("axis", 0)])
}

/// `[batch, sequence, heads * head]` as `[batch, heads, sequence, head]`, `shape` being that of single heads.
pub(super) fn split_heads(b: &mut Builder, x: &str, shape: &str) -> String {
    let x = b.node("Reshape", &[x, shape], vec![int("allowzero", 1)]);
    b.node("Transpose", &[&x], vec![ints("perm", &[0, 2, 1, 3])])
}

/// Appends `new` to the cache of `layer` and returns the whole.
pub(super) fn append(b: &mut Builder, layer: usize, part: &str, new: &str) -> String {
    let present = format!("present.{layer}.{part}");
    b.node_as("Concat", &[&format!("past_key_values.{layer}.{part}"), new], vec![int("axis", -2)], &[&present]);
    present
}

/// Attention as torch's fused operator is exported: queries and keys scaled by the fourth root of the head size, keys
/// transposed in three dimensions, rows that see nothing set to zero. All operands are `[batch, heads, positions, head]`.
pub(super) fn fused(b: &mut Builder, q: &str, k: &str, v: &str, mask: &str, head: usize) -> String {
    let (last, second_last) = (b.ints(&[-1]), b.ints(&[-2]));
    let (least, greatest) = (b.ints(&[i64::MIN]), b.ints(&[i64::MAX]));
    let shape = b.node("Shape", &[k], vec![int("start", 0)]);
    let width = b.node("Slice", &[&shape, &last, &greatest], vec![]);
    let length = b.node("Slice", &[&shape, &second_last, &last], vec![]);
    let outer = b.node("Slice", &[&shape, &least, &second_last], vec![]);
    let flat = b.node("Concat", &[&last, &length, &width], vec![int("axis", 0)]);
    let k = b.node("Reshape", &[k, &flat], vec![int("allowzero", 0)]);
    let k = b.node("Transpose", &[&k], vec![ints("perm", &[0, 2, 1])]);
    let full = b.node("Concat", &[&outer, &width, &length], vec![int("axis", 0)]);
    let k = b.node("Reshape", &[&k, &full], vec![int("allowzero", 0)]);
    let root = b.float((head as f64).powf(-0.25) as f32);
    let q = b.node("Mul", &[q, &root], vec![]);
    let k = b.node("Mul", &[&k, &root], vec![]);
    let scores = b.node("MatMul", &[&q, &k], vec![]);
    let scores = b.node("Add", &[&scores, mask], vec![]);
    let p = b.node("Softmax", &[&scores], vec![int("axis", -1)]);
    let undefined = b.node("IsNaN", &[&p], vec![]);
    let zero = b.float(0.0);
    let p = b.node("Where", &[&undefined, &zero, &p], vec![]);
    b.node("MatMul", &[&p, v], vec![])
}

/// Attention as the formula is exported: scores scaled by the square root of the head size.
pub(super) fn plain(b: &mut Builder, q: &str, k: &str, v: &str, mask: &str, head: usize) -> String {
    let k = b.node("Transpose", &[k], vec![ints("perm", &[0, 1, 3, 2])]);
    let scores = b.node("MatMul", &[q, &k], vec![]);
    let scale = b.float((head as f64).powf(-0.5) as f32);
    let scores = b.node("Mul", &[&scores, &scale], vec![]);
    let scores = b.node("Add", &[&scores, mask], vec![]);
    let p = b.node("Softmax", &[&scores], vec![int("axis", -1)]);
    b.node("MatMul", &[&p, v], vec![])
}
