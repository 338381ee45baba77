//! Names of the files of a plan folder: `public/` for everybody, `server/` for the provider alone. The compiler writes
//! them, and every party opens them.

/// The plan, in `public/`; of a plan for costs alone, in the folder itself.
pub const PLAN: &str = "plan.ombra";
/// The client's plaintext region, in `public/`.
pub const CLIENT_MODEL: &str = "client.onnx";
/// The data file of the client's plaintext region, where that is large.
pub const CLIENT_DATA: &str = "client.onnx.data";
/// The weights, in both folders.
pub const WEIGHTS: &str = "weights.safetensors";
/// What the metadata of the private weights calls the digest of the plan that they were written for.
pub const PLAN_DIGEST: &str = "plan";
/// The tokenizer, in `public/`.
pub const TOKENIZER: &str = "tokenizer.json";
/// How tokens are chosen, and the ids of end tokens.
pub const GENERATION: &str = "generation_config.json";
/// The tokenizer's configuration: texts of special tokens, and perhaps the chat template.
pub const TOKENIZER_CONFIGURATION: &str = "tokenizer_config.json";
/// The chat template, as a text.
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// Texts of special tokens, as older folders have them.
pub const SPECIAL_TOKENS: &str = "special_tokens_map.json";

/// Other files of the public folder, as the folders have them in which models are published.
pub const CONFIGURATION: [&str; 5] =
    [GENERATION, TOKENIZER_CONFIGURATION, CHAT_TEMPLATE, "chat_template.json", SPECIAL_TOKENS];
