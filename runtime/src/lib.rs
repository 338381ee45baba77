//! Plan in; shares, protocols, kernels, transport.
