package holder

// threadArea is where the calling thread's own data is (TPIDR_EL0), or 0.
func threadArea() uintptr
