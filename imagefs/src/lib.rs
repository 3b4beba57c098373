//! Files: OCI layers kept as verified tars, EROFS indexes, overlay mounts.
