"""Apache TVM as a code generator that we drive: own emission of Relax, own kernels, own pipeline."""
