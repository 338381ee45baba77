//! The plan file: a scheduled module with a format version and a digest.
//!
//! Layout: the magic bytes `OMBRAPLN`, a little-endian `u32` format version, the SHA-256 digest of what follows, then
//! the plan in postcard encoding. A plan is hostile until [`decode`] and the verifier have passed it.

use crate::diag::{Diagnostic, Result};
use crate::dim::{Bindings, Dim, Sym};
use crate::draw::{Drawing, Way};
use crate::module::{Module, Party};
use crate::plain::tensor::volume;
use crate::plain::{DType, Data, Tensor};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// First bytes of every plan file.
pub const MAGIC: &[u8; 8] = b"OMBRAPLN";
/// Version of the format and of what its ops send; a runtime reads its own version only.
pub const VERSION: u32 = 11;
/// Bytes before the body: magic, version, digest.
pub const HEADER: usize = 44;
/// Largest plan file that is read.
pub const MAX_BYTES: usize = 1 << 30;

/// How the names of the inputs of the client's plaintext region begin that are symbolic sizes: the name of the size
/// follows. Each is a list of one integer.
pub const SIZE: &str = "%size.";

/// What every party gets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The program.
    pub module: Module,
    /// What takes the place of its end where next tokens are chosen otherwise, at most one for every way.
    pub drawings: Vec<Drawing>,
    /// The client's plaintext region, an ONNX model, if there is one: file name in the public folder and digest. Its inputs
    /// are inputs of the model, client states, and sizes: see [`SIZE`].
    pub client_model: Option<FileDigest>,
    /// Digest of the public weights file.
    pub public_weights: FileDigest,
    /// The dealer gets nothing of the model: its term of every private weight follows from its key with the server, and the
    /// client gets the rest once. In settings with a dealer alone.
    pub strict_dealer: bool,
    /// Other files of the public folder with their digests: the data of the client's plaintext region where they are not
    /// in its own file, the tokenizer, what a model's folder says about generating and chatting.
    pub files: Vec<FileDigest>,
    /// Values that the client's plaintext region keeps between steps.
    pub client_states: Vec<ClientState>,
    /// Graph inputs as the exporter declared them.
    pub graph_inputs: Vec<GraphInput>,
    /// The symbols of batch, new tokens and cached tokens, by name, where the model has them.
    pub batch: Option<String>,
    /// New tokens of a step.
    pub seq: Option<String>,
    /// Cached tokens before a step.
    pub past: Option<String>,
    /// Sizes that the model takes to be at most a number, as it cuts tables of that length to them. Nothing in the module
    /// says so: see [`Plan::check_limits`].
    pub limits: Vec<(Dim, u64)>,
    /// Inputs of the ONNX file that the plan takes to be one number, by name. They are not given to it.
    pub fixed: Vec<(String, i64)>,
    /// Ranges that nothing proves and that the program takes for granted.
    pub assumed: Vec<AssumedRange>,
    /// The weights that bounds follow from.
    pub bounds_of: BoundsOf,
    /// What changed the model's meaning, in words: approximations that were asked for.
    pub changes: Vec<String>,
    /// The plan says what a model would cost and cannot run: owners of weights or bounds of values are assumed, or there
    /// are no files of weights.
    pub costs_only: bool,
    /// Who computes what, folded by layer and role.
    pub parts: Vec<Part>,
    /// What a step costs before all passes of the compiler and after each of them, where that was asked for.
    pub savings: Vec<Saving>,
}

/// A range that nothing proves and that the program takes for granted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AssumedRange {
    /// The ONNX node that makes the value, or whose rows they are.
    pub node: String,
    /// Its layer, where names show one.
    pub layer: Option<u32>,
    /// Name of its operator.
    pub op: String,
    /// What is bounded.
    pub quantity: Quantity,
    /// It is at least this; nothing is assumed without it.
    pub low: Option<f64>,
    /// It is less than this; nothing is assumed without it.
    pub high: Option<f64>,
}

/// What is assumed of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// Of every row along the last axis: its 2-norm, and with it the size of every element.
    Magnitude,
    /// Of every element: that it is not above the high end.
    Exponent,
    /// Of every element: its size, which must not vanish. None is negative, whatever the inputs are.
    PositiveDivisor,
    /// The same, and that its sign is the one that all had on calibration inputs.
    DivisorOfOneSign,
    /// Its size alone: both signs are taken care of.
    DivisorOfBothSigns,
    /// Of a softmax by quotients: the divisor of every row, for the high end over the number of its entries.
    RowStatistic,
}

impl Quantity {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Quantity::Magnitude => "length of rows",
            Quantity::Exponent => "exponent",
            Quantity::PositiveDivisor => "size of a positive divisor",
            Quantity::DivisorOfOneSign => "size and sign of a divisor",
            Quantity::DivisorOfBothSigns => "size of a divisor",
            Quantity::RowStatistic => "statistic of rows",
        }
    }
}

/// What a part of the model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Masks, positions, angles: they follow from lengths and masks.
    Structure,
    /// Weights that the server prepares once, such as products of a weight and a norm's scale.
    Weights,
    /// What comes before all layers.
    Embedding,
    /// Attention with its norm and products.
    Attention,
    /// The rest of a layer.
    FeedForward,
    /// What follows the layers.
    Head,
}

impl Role {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Role::Structure => "masks and positions",
            Role::Weights => "prepared weights",
            Role::Embedding => "embedding",
            Role::Attention => "attention",
            Role::FeedForward => "feed-forward",
            Role::Head => "head",
        }
    }
}

/// Where a part of the model is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// By everybody, in the clear.
    Everybody,
    /// By the client, in the clear.
    Client,
    /// By the server, in the clear, when the plan is made.
    Server,
    /// By all parties, under MPC.
    Mpc,
}

impl Place {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Place::Everybody => "everybody, in the clear",
            Place::Client => "client, in the clear",
            Place::Server => "server, in the clear",
            Place::Mpc => "all parties, under MPC",
        }
    }
}

/// Nodes of the model of one layer, role and place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Number of the layer, if they belong to one.
    pub layer: Option<u32>,
    /// What they do.
    pub role: Role,
    /// Who computes them.
    pub place: Place,
    /// How many there are.
    pub nodes: u32,
    /// Elements of the public weights that they read.
    pub public_weights: u64,
    /// Elements of the private weights that they read.
    pub private_weights: u64,
}

/// What steps cost after one more pass of the compiler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saving {
    /// The pass, in words.
    pub pass: String,
    /// The steps that were counted, the same ones after every pass.
    pub steps: Vec<StepCost>,
}

/// What one step costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepCost {
    /// `prefill`, `decode` or `infer`.
    pub name: String,
    /// Its sizes.
    pub dims: Vec<(String, u64)>,
    /// Longest chain of messages.
    pub rounds: u32,
    /// Payload bytes that every party sends, in the order of parties.
    pub bytes: [u64; 3],
    /// Payload bytes of all parties by the composite op or kind of op that they belong to.
    pub kinds: Vec<(String, u64)>,
}

impl StepCost {
    /// Payload bytes of all parties.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.iter().fold(0, |sum, &b| sum.saturating_add(b))
    }
}

impl Plan {
    /// The symbol of one of the plan's sizes, such as [`past`](Plan::past), where the model has it.
    pub fn sym(&self, size: &Option<String>) -> Option<Sym> {
        self.module.dims.find(size.as_ref()?)
    }

    /// The party beside the server whose term of the private weights follows from a key; the third of the three gets the
    /// rest of every weight.
    ///
    /// # Errors
    /// `E0421` for a strict dealer in a setting without one.
    pub fn derives(&self) -> Result<Party> {
        if self.strict_dealer { self.module.setting.dealer() } else { Ok(Party::Client) }
    }

    /// The largest value of one of the plan's sizes, where something limits it.
    pub fn max_of(&self, size: &Option<String>) -> Option<u64> {
        self.module.dims.info(self.sym(size)?)?.max
    }

    /// What chooses next tokens in a `way`; nothing where that is the plan's own module.
    ///
    /// # Errors
    /// `E0417` where the plan has none.
    pub fn drawing(&self, way: Way) -> Result<Option<&Drawing>> {
        if way == Way::default() {
            return Ok(None);
        }
        let found = self.drawings.iter().find(|drawing| drawing.way == way);
        found.map(Some).ok_or_else(|| match way.penalized {
            true if !self.drawings.is_empty() => Diagnostic::input("E0417", "the plan takes no penalties")
                .note("leave out the presence and frequency penalties, or compile with --penalties"),
            _ => Diagnostic::input("E0417", "the plan draws no next tokens")
                .note("expected a causal language model that was compiled to reveal its next token")
                .note("leave out the temperature, top-k, top-p and penalties: the most probable token is chosen then"),
        })
    }

    /// The ways in which the plan chooses next tokens.
    pub fn ways(&self) -> Vec<Way> {
        std::iter::once(Way::default()).chain(self.drawings.iter().map(|drawing| drawing.way)).collect()
    }

    /// The plan with the program that chooses next tokens in a `way` as its module: what that costs.
    ///
    /// # Errors
    /// Those of [`Plan::drawing`] and [`Drawing::module`].
    pub fn drawn(&self, way: Way) -> Result<Plan> {
        let module = match self.drawing(way)? {
            Some(drawing) => drawing.module(&self.module)?,
            None => self.module.clone(),
        };
        Ok(Plan { module, drawings: Vec::new(), ..self.clone() })
    }

    /// Refuses a plan that was made for costs alone.
    ///
    /// # Errors
    /// `E0414`.
    pub fn check_runs(&self) -> Result<()> {
        if !self.costs_only {
            return Ok(());
        }
        Err(Diagnostic::input("E0414", "this plan is for costs only and cannot run")
            .note("it was compiled without weights: owners and bounds in it are assumed")
            .note("compile the model again with its data files beside it"))
    }

    /// Checks the sizes of a step against what the model takes for granted.
    ///
    /// # Errors
    /// `E0407` for a size beyond its limit; a symbol without a value.
    pub fn check_limits(&self, sizes: &Bindings) -> Result<()> {
        for (dim, most) in &self.limits {
            let found = dim.eval(sizes)?;
            if found > *most {
                let dim = self.module.dims.show(dim);
                return Err(Diagnostic::input("E0407", format!("`{dim}` is {found}, more than the model allows"))
                    .note(format!("expected at most {most}: the model's tables have no more entries"))
                    .note("use a shorter prompt or fewer new tokens"));
            }
        }
        Ok(())
    }
}

/// The weights that bounds follow from. Bounds are public, as powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BoundsOf {
    /// The model with its private weights: bounds say how large these and the values that they make can be.
    Model,
    /// The base model's weights in place of private ones, and room above them. That the private weights keep within is
    /// all that is said of them.
    Base,
}

impl BoundsOf {
    /// The word for it in reports.
    pub fn name(self) -> &'static str {
        match self {
            BoundsOf::Model => "model",
            BoundsOf::Base => "base",
        }
    }
}

/// A file beside the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// Name in the public folder.
    pub file: String,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// A value that the client's plaintext region keeps between steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientState {
    /// Input of the client's model.
    pub input: String,
    /// Output of the client's model.
    pub output: String,
    /// Sizes before a step.
    pub shape: Vec<Dim>,
}

/// What an input of the ONNX graph is. Sizes are those that exporters give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum InputRole {
    /// The prompt's tokens, `[batch, seq]`: the client's.
    TokenIds,
    /// Which positions count, `[batch, past + seq]`: public.
    AttentionMask,
    /// Positions of the tokens, `[batch, seq]`: public.
    PositionIds,
    /// Keys of earlier tokens, `[batch, heads, past, head size]`: the client's, or state.
    PastKey {
        /// Number of the layer.
        layer: u32,
    },
    /// Values of earlier tokens, `[batch, heads, past, head size]`: the client's, or state.
    PastValue {
        /// Number of the layer.
        layer: u32,
    },
    /// Embeddings in place of tokens: the client's.
    Embeddings,
    /// Declared public by the user: everybody learns its contents.
    Public,
    /// Any other, whatever its element type: the client's.
    Other,
}

impl InputRole {
    /// All of them, caches of layer 0.
    pub const ALL: [InputRole; 8] = [
        InputRole::TokenIds,
        InputRole::AttentionMask,
        InputRole::PositionIds,
        InputRole::PastKey { layer: 0 },
        InputRole::PastValue { layer: 0 },
        InputRole::Embeddings,
        InputRole::Public,
        InputRole::Other,
    ];

    /// Name as printed.
    pub fn name(self) -> &'static str {
        match self {
            InputRole::TokenIds => "token_ids",
            InputRole::AttentionMask => "attention_mask",
            InputRole::PositionIds => "position_ids",
            InputRole::PastKey { .. } => "past_key",
            InputRole::PastValue { .. } => "past_value",
            InputRole::Embeddings => "embeddings",
            InputRole::Public => "public",
            InputRole::Other => "other",
        }
    }

    /// What a mask or positions of a shape hold where nobody gives them: every position counts but the first `padding` ones
    /// of each text, and tokens are counted from there on, after `past` cached ones. None of other roles, and of positions
    /// that are booleans.
    ///
    /// # Errors
    /// A shape that no tensor has.
    pub fn default_of(self, dtype: DType, shape: &[usize], past: u64, padding: &[u64]) -> Result<Option<Tensor>> {
        let length = shape.last().copied().unwrap_or(1).max(1) as u64;
        let of_text = |index: u64| match shape.len() {
            2 => usize::try_from(index / length).ok().and_then(|text| padding.get(text)).copied().unwrap_or(0),
            _ => 0,
        };
        let number = |index: u64| match self {
            InputRole::AttentionMask => u64::from(index % length >= of_text(index)),
            _ => past.saturating_add(index % length).saturating_sub(of_text(index)),
        };
        let all = (0..volume(shape)? as u64).map(number);
        let data = match (self, dtype) {
            (InputRole::AttentionMask, DType::Bool) => Data::Bool(all.map(|n| n == 1).collect()),
            (InputRole::AttentionMask | InputRole::PositionIds, DType::I64) => {
                Data::I64(all.map(|n| i64::try_from(n).unwrap_or(i64::MAX)).collect())
            }
            (InputRole::AttentionMask | InputRole::PositionIds, DType::F32) => {
                Data::F32(all.map(|n| n as f32).collect())
            }
            _ => return Ok(None),
        };
        Tensor::new(shape.to_vec(), data).map(Some)
    }
}

/// An input of the ONNX graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphInput {
    /// Its name.
    pub name: String,
    /// What it is.
    pub role: InputRole,
    /// Element type.
    pub dtype: DType,
    /// Sizes.
    pub shape: Vec<Dim>,
}

/// A plan as a file. The same plan gives the same bytes.
///
/// # Errors
/// The plan cannot be encoded, which does not happen for a plan that the verifier passed.
pub fn encode(plan: &Plan) -> Result<Vec<u8>> {
    let body = postcard::to_stdvec(plan)
        .map_err(|e| Diagnostic::internal("E0410", format!("the plan cannot be encoded: {e}")))?;
    Ok(with_header(&body))
}

/// A plan file with this body: magic bytes, version and the body's digest in front of it.
pub fn with_header(body: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(body.len() + HEADER);
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&VERSION.to_le_bytes());
    file.extend_from_slice(&Sha256::digest(body));
    file.extend_from_slice(body);
    file
}

/// A plan from a file's bytes; checks length, magic, version and digest before decoding.
///
/// # Errors
/// Any difference from what [`encode`] writes.
pub fn decode(file: &[u8]) -> Result<Plan> {
    let bad = |message: &str| Diagnostic::input("E0411", format!("not a plan file: {message}"));
    if file.len() > MAX_BYTES {
        return Err(bad("it is too large").note(format!("expected at most {MAX_BYTES} bytes, found {}", file.len())));
    }
    let (Some(magic), Some(version), Some(digest), Some(body)) =
        (file.get(..8), file.get(8..12), file.get(12..HEADER), file.get(HEADER..))
    else {
        return Err(bad("it is cut short").note(format!("expected at least {HEADER} bytes, found {}", file.len())));
    };
    if magic != MAGIC {
        return Err(bad("its first bytes are not OMBRAPLN").note("give the plan.ombra that `ombra compile` wrote"));
    }
    let version = version.iter().rev().fold(0u32, |v, &b| v << 8 | u32::from(b));
    if version != VERSION {
        return Err(Diagnostic::input("E0412", format!("plan format {version} is not supported"))
            .note(format!("expected format {VERSION}"))
            .note("compile the model again with this version"));
    }
    if Sha256::digest(body).as_slice() != digest {
        return Err(Diagnostic::input("E0413", "the plan file is damaged: its digest does not match")
            .note("copy the file again or compile the model again"));
    }
    match postcard::take_from_bytes(body) {
        Ok((plan, [])) => Ok(plan),
        Ok((_, rest)) => Err(bad("bytes follow its end").note(format!("found {} more bytes", rest.len()))),
        Err(e) => Err(bad(&format!("it cannot be decoded ({e})"))),
    }
}

/// The digest that parties compare: SHA-256 of the whole file, in hexadecimal.
pub fn digest(file: &[u8]) -> String {
    Sha256::digest(file).iter().map(|b| format!("{b:02x}")).collect()
}
