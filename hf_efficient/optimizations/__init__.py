"""One optimization per file; `hf_efficient.plan.OPTIMIZATIONS` lists them."""
