//! One container: runtime specification, monitor process, process handle, stdio.
