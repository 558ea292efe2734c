"""The parts of the demo: inputs, formats, what is measured, LoRA, the plot, and the run."""
