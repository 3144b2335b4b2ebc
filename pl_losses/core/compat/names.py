"""Private names of others that are only compared with text: none of these packages is imported."""

# Entries of OneCycleLR's state that depend on its length. Without the second: a schedule is not stretched.
CYCLE = ("total_steps", "_schedule_phases")
# Modules within which torch.compile, checkpointing and FSDP put a module. Without them: names have this part.
WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
# What counts the batches in the loops of a Lightning checkpoint. Without it: a check leaves this count out.
STEPPED = "_batches_that_stepped"
# What Lightning's command line adds to hyper-parameters. Without the first: the class is not compared.
CLASS_PATH, INSTANTIATOR = "_class_path", "_instantiator"
# Lightning's short names in the Trainer's annotations. Without them: any class is refused there by its name.
ANNOTATIONS = {
    "_PRECISION_INPUT": ("Precision",),
    "_PLUGIN_INPUT": ("Precision", "ClusterEnvironment", "CheckpointIO", "LayerSync"),
}
# Keys in the files of a W&B run. Without them: `pl-losses show` counts rows, and draws no pictures or tables.
STEP, KIND, ABOUT = "_step", "_type", "_wandb"
TIMES = ("_timestamp", "_runtime")


def without_wrappers(path: str) -> str:
    """Remove the names of wrappers from a module's or parameter's path.

    Example:
        >>> without_wrappers("network._orig_mod.3")
        'network.3'
    """
    return ".".join(part for part in path.split(".") if part not in WRAPPERS)
