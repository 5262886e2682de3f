/* Constants of the classic instruction set: bpf.h needs none of them here. */
