//! ONNX in, plan out.
