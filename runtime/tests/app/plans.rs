//! Small plans, written as a compiler would write them, and what they compute.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use ombra_ir::infer::{push, push_source};
use ombra_ir::module::{Id, InputSlot, Module, Origin, OutputKind, OutputSlot, Party, Setting, Stage, StateSlot};
use ombra_ir::op::Op;
use ombra_ir::plain::{DType, Program};
use ombra_ir::plan::{self, ClientState, FileDigest, GraphInput, InputRole, Plan};
use ombra_ir::ty::{BoundFrom, Sharing, Ty};
use ombra_ir::{Dim, Dims};
use onnx_protobuf::tensor_proto::DataType;
use onnx_protobuf::{
    GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TypeProto, ValueInfoProto, type_proto,
};
use protobuf::{Enum, MessageField};
use safetensors::tensor::{Dtype, TensorView};
use sha2::{Digest, Sha256};

/// Rows of the token table, and elements of each.
pub const VOCABULARY: usize = 6;
/// Elements of a row.
pub const WIDTH: usize = 4;
/// Longest prompt, and longest cache.
pub const MAX: u64 = 12;

/// A folder of its own for one test, removed at its end.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("app-{}-{number}", std::process::id()));
        fs::create_dir_all(path.join("public")).unwrap();
        fs::create_dir_all(path.join("server")).unwrap();
        Folder(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Element `column` of row `token` of the table.
pub fn table(token: usize, column: usize) -> f32 {
    ((token * 7 + column * 3) % 11) as f32 / 8.0 - 0.5
}

/// Element of the head's weight.
pub fn head(row: usize, token: usize) -> f32 {
    ((row * 5 + token * token * 2) % 13) as f32 / 8.0 - 0.75
}

/// The next token of the models below: the maximum of the sum of all rows times the head.
pub fn next_token(tokens: &[i64]) -> i64 {
    let sum = |column| tokens.iter().map(|&token| table(token as usize, column)).sum::<f32>();
    let score = |token| (0..WIDTH).map(|row| sum(row) * head(row, token)).sum::<f32>();
    (0..VOCABULARY).fold(0, |best, token| if score(token) > score(best) { token } else { best }) as i64
}

/// The tokens that the models below generate after `prompt`.
pub fn continuation(prompt: &[i64], count: usize) -> Vec<i64> {
    let mut tokens = prompt.to_vec();
    (0..count).for_each(|_| tokens.push(next_token(&tokens)));
    tokens.split_off(prompt.len())
}

struct Build {
    module: Module,
    seq: Dim,
    past: Dim,
}

impl Build {
    fn new() -> Build {
        Build::in_setting(Setting::ThreeParty)
    }

    fn in_setting(setting: Setting) -> Build {
        let mut dims = Dims::default();
        let mut symbol = |name, min| {
            let sym = dims.symbol(name).unwrap();
            let info = dims.info_mut(sym).unwrap();
            (info.min, info.max) = (min, Some(MAX));
            Dim::from(sym)
        };
        let (seq, past) = (symbol("seq", 1), symbol("past", 0));
        let module = Module {
            name: "tiny".to_owned(),
            setting,
            stage: Stage::Scheduled,
            dims,
            counts: vec![],
            public: Program::default(),
            inputs: vec![],
            states: vec![],
            outputs: vec![],
            ops: vec![],
        };
        Build { module, seq, past }
    }

    fn input(&mut self, name: &str, dtype: DType, shape: &[Dim]) {
        self.module.inputs.push(InputSlot { name: name.to_owned(), dtype, shape: shape.to_vec() });
    }

    fn op(&mut self, op: Op, args: &[Id], bound: Option<u8>) -> Id {
        let bound = bound.map(|bound| (bound, BoundFrom::Calibrated));
        let origin = Origin { node: format!("node{}", self.module.ops.len()), ..Origin::default() };
        push(&mut self.module, op, args, bound, origin).unwrap()
    }

    fn source(&mut self, op: Op, scale: u8, shape: &[Dim], bound: u8) -> Id {
        let ty =
            Ty { bound_from: BoundFrom::Calibrated, ..Ty::ring(64, scale, Sharing::Shared, shape.to_vec(), bound) };
        push_source(&mut self.module, op, ty, Origin::default()).unwrap()
    }

    fn weight(&mut self, name: &str, shape: &[u32]) -> Id {
        let shape: Vec<Dim> = shape.iter().map(|&size| Dim::from(size)).collect();
        self.source(Op::Weight { name: name.to_owned() }, 16, &shape, 18)
    }

    fn reveal(&mut self, name: &str, kind: OutputKind, value: Id) {
        self.module.outputs.push(OutputSlot { name: name.to_owned(), kind, to: Party::Client });
        let slot = self.module.outputs.len() as u32 - 1;
        self.op(Op::Reveal { slot }, &[value], None);
    }
}

/// `y = x · w` for `x` of `[1, rows]`: large weights and a small result.
pub fn tall(rows: usize) -> Folder {
    let mut build = Build::new();
    let shape = [Dim::from(1), Dim::from(rows as u32)];
    build.input("x", DType::F32, &shape);
    let x = build.source(Op::Input { slot: 0 }, 16, &shape, 18);
    let w = build.weight("w", &[rows as u32, VOCABULARY as u32]);
    let product = build.op(Op::MatMul { trans_b: false }, &[x, w], Some(54));
    let y = build.op(Op::Truncate { by: 16, bits: 64 }, &[product], None);
    build.reveal("y", OutputKind::Tensor, y);
    let graph = vec![graph_input("x", InputRole::Other, DType::F32, &shape)];
    write(build.module, graph, None, None, vec![], &[("w", vec![rows, VOCABULARY], vec![0.5; rows * VOCABULARY])])
}

/// `y = x · w`, for `x` of `[seq, 4]`: an `infer` of floats. The client's model doubles `x` first if `region` is set.
pub fn linear(region: bool) -> Folder {
    let mut build = Build::new();
    let shape = [build.seq.clone(), Dim::from(WIDTH as u32)];
    let name = if region { "doubled" } else { "x" };
    build.input(name, DType::F32, &shape);
    let x = build.source(Op::Input { slot: 0 }, 16, &shape, 22);
    let w = build.weight("w", &[WIDTH as u32, VOCABULARY as u32]);
    let product = build.op(Op::MatMul { trans_b: false }, &[x, w], Some(42));
    let y = build.op(Op::Truncate { by: 16, bits: 64 }, &[product], None);
    build.reveal("y", OutputKind::Tensor, y);
    let mask = [Dim::from(1), build.seq.clone()];
    let graph = vec![
        graph_input("x", InputRole::Other, DType::F32, &shape),
        graph_input("attention_mask", InputRole::AttentionMask, DType::I64, &mask),
    ];
    let nodes = vec![node("Add", &["x", "x"], "doubled", &[])];
    let model = region.then(|| model(nodes, &[("x", DataType::FLOAT)], &["doubled"]));
    let weights = [("w", vec![WIDTH, VOCABULARY], weights(WIDTH, VOCABULARY, head))];
    write(build.module, graph, None, model, vec![], &weights)
}

/// A language model whose cache stays in shares: the next token of all rows so far.
pub fn cached() -> Folder {
    cached_in(Setting::ThreeParty)
}

/// [`cached`] in a setting.
pub fn cached_in(setting: Setting) -> Folder {
    let mut build = Build::in_setting(setting);
    let width = Dim::from(WIDTH as u32);
    let ids = [Dim::from(1), build.seq.clone()];
    let cache = [Dim::from(1), build.past.clone(), width.clone()];
    build.input("input_ids", DType::I64, &ids);
    build.module.states.push(StateSlot {
        input: "past.rows".to_owned(),
        output: "present.rows".to_owned(),
        shape: cache.to_vec(),
    });
    let tokens = build.op(Op::ClientInts { slot: 0 }, &[], None);
    let rows = build.weight("table", &[VOCABULARY as u32, WIDTH as u32]);
    let past = build.source(Op::State { slot: 0 }, 16, &cache, 18);
    let rows = build.op(Op::Embed, &[tokens, rows], None);
    let all = build.op(Op::Concat { axis: 1 }, &[past, rows], Some(18));
    build.op(Op::SetState { slot: 0 }, &[all], None);
    let sum = build.op(Op::ReduceSum { axis: 1 }, &[all], Some(22));
    next(&mut build, sum);
    let graph = vec![
        graph_input("input_ids", InputRole::TokenIds, DType::I64, &ids),
        graph_input("past.rows", InputRole::PastKey { layer: 0 }, DType::F32, &cache),
    ];
    let weights = [
        ("table", vec![VOCABULARY, WIDTH], weights(VOCABULARY, WIDTH, table)),
        ("head", vec![WIDTH, VOCABULARY], weights(WIDTH, VOCABULARY, head)),
    ];
    write(build.module, graph, Some("past"), None, vec![], &weights)
}

/// The same language model, whose rows and cache the client keeps in the clear.
pub fn client_cached() -> Folder {
    let mut build = Build::new();
    let width = Dim::from(WIDTH as u32);
    let ids = [Dim::from(1), build.seq.clone()];
    let cache = [Dim::from(1), build.past.clone(), width.clone()];
    build.input("sum", DType::F32, &[Dim::from(1), Dim::from(1), width.clone()]);
    let sum = build.source(Op::Input { slot: 0 }, 16, &[Dim::from(1), Dim::from(1), width], 22);
    next(&mut build, sum);
    let graph = vec![
        graph_input("input_ids", InputRole::TokenIds, DType::I64, &ids),
        graph_input("past.rows", InputRole::PastKey { layer: 0 }, DType::F32, &cache),
    ];
    let mut rows = TensorProto::new();
    (rows.name, rows.dims) = ("table".to_owned(), vec![VOCABULARY as i64, WIDTH as i64]);
    (rows.data_type, rows.float_data) = (DataType::FLOAT.value(), weights(VOCABULARY, WIDTH, table));
    let mut axis = TensorProto::new();
    (axis.name, axis.data_type, axis.int64_data) = ("axis".to_owned(), DataType::INT64.value(), vec![1]);
    axis.dims = vec![1];
    let nodes = vec![
        node("Gather", &["table", "input_ids"], "rows", &[]),
        node("Concat", &["past.rows", "rows"], "present.rows", &[("axis", 1)]),
        node("ReduceSum", &["present.rows", "axis"], "sum", &[]),
    ];
    let mut model =
        model(nodes, &[("input_ids", DataType::INT64), ("past.rows", DataType::FLOAT)], &["sum", "present.rows"]);
    model.graph.mut_or_insert_default().initializer = vec![rows, axis];
    let states =
        vec![ClientState { input: "past.rows".to_owned(), output: "present.rows".to_owned(), shape: cache.to_vec() }];
    let weights = [("head", vec![WIDTH, VOCABULARY], weights(WIDTH, VOCABULARY, head))];
    write(build.module, graph, Some("past"), Some(model), states, &weights)
}

/// Scores of the sum of rows, and the maximum.
fn next(build: &mut Build, sum: Id) {
    let head = build.weight("head", &[WIDTH as u32, VOCABULARY as u32]);
    let product = build.op(Op::MatMul { trans_b: false }, &[sum, head], Some(42));
    let scores = build.op(Op::Truncate { by: 16, bits: 64 }, &[product], None);
    let best = build.op(Op::ArgMax { width: 32 }, &[scores], None);
    build.reveal("logits", OutputKind::NextToken, best);
}

fn weights(rows: usize, columns: usize, element: fn(usize, usize) -> f32) -> Vec<f32> {
    (0..rows * columns).map(|index| element(index / columns, index % columns)).collect()
}

fn graph_input(name: &str, role: InputRole, dtype: DType, shape: &[Dim]) -> GraphInput {
    GraphInput { name: name.to_owned(), role, dtype, shape: shape.to_vec() }
}

fn node(kind: &str, inputs: &[&str], output: &str, attributes: &[(&str, i64)]) -> NodeProto {
    let mut node = NodeProto::new();
    (node.op_type, node.name, node.output) = (kind.to_owned(), output.to_owned(), vec![output.to_owned()]);
    node.input = inputs.iter().map(|input| (*input).to_owned()).collect();
    for (name, value) in attributes {
        let mut attribute = onnx_protobuf::AttributeProto::new();
        (attribute.name, attribute.i) = ((*name).to_owned(), *value);
        attribute.type_ = onnx_protobuf::attribute_proto::AttributeType::INT.into();
        node.attribute.push(attribute);
    }
    node
}

fn model(nodes: Vec<NodeProto>, inputs: &[(&str, DataType)], outputs: &[&str]) -> ModelProto {
    let value = |name: &str, kind: DataType| {
        let mut tensor = type_proto::Tensor::new();
        tensor.elem_type = kind.value();
        let mut ty = TypeProto::new();
        ty.set_tensor_type(tensor);
        let mut info = ValueInfoProto::new();
        (info.name, info.type_) = (name.to_owned(), MessageField::some(ty));
        info
    };
    let mut graph = GraphProto::new();
    graph.node = nodes;
    graph.input = inputs.iter().map(|(name, kind)| value(name, *kind)).collect();
    graph.output = outputs.iter().map(|name| value(name, DataType::FLOAT)).collect();
    let mut opset = OperatorSetIdProto::new();
    opset.version = 17;
    let mut model = ModelProto::new();
    (model.ir_version, model.opset_import, model.graph) = (8, vec![opset], MessageField::some(graph));
    model
}

fn write(
    module: Module,
    graph_inputs: Vec<GraphInput>,
    past: Option<&str>,
    model: Option<ModelProto>,
    client_states: Vec<ClientState>,
    weights: &[(&str, Vec<usize>, Vec<f32>)],
) -> Folder {
    let folder = Folder::new();
    let public = folder.join("public");
    save_weights(&public.join("weights.safetensors"), &[]);
    save_weights(&folder.join("server/weights.safetensors"), weights);
    let client_model = model.map(|model| {
        fs::write(public.join("client.onnx"), model.write_to_bytes().unwrap()).unwrap();
        digest_of(&public, "client.onnx")
    });
    let plan = Plan {
        module,
        client_model,
        public_weights: digest_of(&public, "weights.safetensors"),
        files: vec![],
        client_states,
        graph_inputs,
        batch: None,
        seq: Some("seq".to_owned()),
        past: past.map(str::to_owned),
        limits: vec![],
        fixed: vec![],
        assumed: vec![],
        bounds_of: ombra_ir::plan::BoundsOf::Model,
        changes: vec![],
        costs_only: false,
        strict_dealer: false,
        parts: vec![],
        savings: vec![],
        drawings: vec![],
    };
    fs::write(public.join("plan.ombra"), plan::encode(&plan).unwrap()).unwrap();
    folder
}

/// Puts a file beside the plan, which gets its digest.
pub fn add_file(folder: &Folder, name: &str, content: &[u8]) {
    let public = folder.join("public");
    fs::write(public.join(name), content).unwrap();
    change(folder, |plan| plan.files.push(digest_of(&public, name)));
}

/// Puts another model for the client beside the plan, which gets its digest.
pub fn set_client_model(folder: &Folder, content: &[u8]) {
    let public = folder.join("public");
    fs::write(public.join("client.onnx"), content).unwrap();
    change(folder, |plan| plan.client_model = Some(digest_of(&public, "client.onnx")));
}

/// Changes the plan.
pub fn change(folder: &Folder, change: impl FnOnce(&mut Plan)) {
    let path = folder.join("public/plan.ombra");
    let mut plan = plan::decode(&fs::read(&path).unwrap()).unwrap();
    change(&mut plan);
    fs::write(&path, plan::encode(&plan).unwrap()).unwrap();
}

/// A model for the client: `doubled` of `x` by these nodes, each with its operator, inputs and output, and integer lists by
/// name.
pub fn hostile_model(nodes: &[(&str, &[&str], &str)], lists: &[(&str, Vec<i64>)]) -> Vec<u8> {
    let nodes = nodes.iter().map(|(kind, inputs, output)| node(kind, inputs, output, &[])).collect();
    let mut model = model(nodes, &[("x", DataType::FLOAT)], &["doubled"]);
    let lists = lists.iter().map(|(name, values)| {
        let mut list = TensorProto::new();
        (list.name, list.data_type) = ((*name).to_owned(), DataType::INT64.value());
        (list.dims, list.int64_data) = (vec![values.len() as i64], values.clone());
        list
    });
    model.graph.mut_or_insert_default().initializer = lists.collect();
    model.write_to_bytes().unwrap()
}

fn digest_of(folder: &Path, file: &str) -> FileDigest {
    let digest = Sha256::digest(fs::read(folder.join(file)).unwrap());
    FileDigest { file: file.to_owned(), sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect() }
}

/// Writes a weights file.
pub fn save_weights(path: &Path, weights: &[(&str, Vec<usize>, Vec<f32>)]) {
    let bytes: Vec<Vec<u8>> =
        weights.iter().map(|(_, _, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect()).collect();
    let views: HashMap<&str, TensorView> = weights
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()))
        .collect();
    safetensors::serialize_to_file(views, None, path).unwrap();
}
