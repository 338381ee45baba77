//! Elements of weights, without holding all of them: what depends on weights alone, and some rows at a time.

pub mod statics;
pub mod stream;
