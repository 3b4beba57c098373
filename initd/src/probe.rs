//! Health checks from inside the pod.
