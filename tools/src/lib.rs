//! quelea: what an operator types, and quelea dev.
