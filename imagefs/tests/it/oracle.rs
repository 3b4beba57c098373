//! The same tars through GNU tar and Python: what they extract and list is what the mount shows.
