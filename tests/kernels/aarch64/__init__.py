"""The native kernels for aarch64, which `qemu-aarch64` computes while the tests run on this machine's processor."""
