package binder

// WithoutBoundShown makes b take the kernel for one that shows no TCP sockets that are only bound.
func (b *Binder) WithoutBoundShown() { b.boundShown = false }

// Without makes b take the kernel for one that lacks these.
func (b *Binder) Without(ipv6, fallback bool) {
	b.ipv6 = b.ipv6 && !ipv6
	b.fallback = b.fallback && !fallback
}

// MaxDescriptors is the soft RLIMIT_NOFILE.
func MaxDescriptors() int {
	n, _ := maxDescriptors()
	return n
}

// Mended returns when what is being mended is.
func (b *Binder) Mended() { b.mending.Wait() }
