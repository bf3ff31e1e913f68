"""Keys of the run: what is trained, how long, with which optimizer, and what is logged, saved and evaluated on the way."""

from __future__ import annotations

from sere_jax.config.keys.key import Group, Key
from sere_jax.config.rule import BOOL, POSITIVE, SHARE, TEXT, Rule, choice, count, number
from sere_jax.objectives.recipes import RECIPES

TOP = Group(
    "",
    "",
    {
        "seed": Key(0, Rule(int, low=0, high=2**32 - 1), "Seed of the initialisation, the order of the data and the augmentation."),
        "recipe": Key("dino_sere", choice(*RECIPES), "The method: which losses are added up (docs/recipes.md)."),
        "init_from": Key("", TEXT, "Weights to start from: a workdir or a file of docs/weights.md; empty = random."),
        "init_heads": Key(True, BOOL, "The heads too start from init_from, as far as it holds them; false = the backbone alone."),
        "init_resize": Key(False, BOOL, "Position embeddings of another size are resized; false = they are an error."),
        "init_ignore": Key("", TEXT, "Patterns, separated by spaces, of tensors of init_from to leave out (docs/weights.md)."),
    },
)

_OPTIMIZER = {
    "name": Key("adamw", choice("adamw", "sgd", "lars"), "Optimizer; AdamW has beta1 0.9 and epsilon 1e-8."),
    "beta2": Key(0.999, number(0.0, 0.9999), "Second beta of AdamW."),
    "momentum": Key(0.9, number(0.0, 0.9999), "Momentum of SGD and LARS."),
    "trust_coefficient": Key(0.001, POSITIVE, "Trust coefficient of LARS."),
    "base_lr": Key(5e-4, number(0, 100, above=True), "Learning rate for 256 images; the peak is base_lr x data.batch_size / 256."),
    "min_lr": Key(1e-6, number(), "Learning rate at the end of the cosine; it does not scale with the batch."),
    "warmup_epochs": Key(10, count(), "Linear warm-up of the learning rate from 0, epochs."),
    "warmup": Key(
        "inclusive",
        choice("inclusive", "exclusive"),
        "The peak is at the warm-up's last step (DINO), or at the step after it (MoCo v3, MAE).",
    ),
    "weight_decay": Key(0.04, number(0, 10), "Weight decay at the start."),
    "weight_decay_end": Key(0.4, number(0, 10), "Weight decay at the end, reached by a cosine."),
    "clip_grad": Key(3.0, number(), "Largest norm of one tensor's gradient; 0 = no clipping."),
    "freeze_last_layer_epochs": Key(1, count(), "Epochs in which the prototypes do not move."),
    "freeze_backbone_epochs": Key(0, count(), "Epochs in which the backbone does not move: new heads warm up on weights of init_from."),
    "decay_bias": Key(False, BOOL, "Biases are decayed, as in the authors' iBOT + SERE code."),
    "decay_scale": Key(False, BOOL, "Scales of normalisation layers are decayed; with decay_bias, everything is (MoCo v3)."),
    "grad_dtype": Key("float32", choice("float32", "bfloat16"), "Type in which gradients are summed over several devices."),
    "accumulate_steps": Key(1, count(1), "Micro-batches of a batch, which are run one after the other for one update."),
}

_TEACHER = {
    "ema_momentum": Key(0.996, SHARE, "Momentum of the teacher at the start."),
    "ema_momentum_end": Key(1.0, SHARE, "Momentum of the teacher at the end, reached by a cosine."),
}

_SCHEDULE = {
    "epochs": Key(
        100, count(), "Length of the run in epochs of floor(images / batch_size) steps; 0 = the initialisation is saved untrained."
    ),
    "total_steps": Key(0, count(), "Length of the run in steps; 0 = schedule.epochs counts."),
}

_RUN = {
    "log_every_steps": Key(10, count(1), "Steps between two lines of the log."),
    "eval_every_steps": Key(0, count(), "Steps between two evaluations of the run (group eval); 0 = none."),
    "eval_every_epochs": Key(0, count(), "Epochs between two evaluations of the run; 0 = run.eval_every_steps counts."),
    "checkpoint_every_steps": Key(500, count(1), "Steps between two checkpoints."),
    "checkpoint_every_epochs": Key(0, count(), "Epochs between two checkpoints; 0 = run.checkpoint_every_steps counts."),
    "keep_checkpoints": Key(2, count(1), "Newest checkpoints that are kept."),
    "keep_every_steps": Key(0, count(), "Checkpoints of every so many steps are kept for good; 0 = none."),
    "keep_best": Key("", TEXT, "Score of the evaluation, such as knn/k20/top1, whose best step is saved and kept; empty = none."),
    "keep_best_mode": Key("max", choice("max", "min"), "Which value of run.keep_best is best."),
    "max_bad_steps": Key(10, count(), "Steps in a row with a non-finite loss or gradient that are skipped before the run ends."),
    "max_bad_share": Key(0.01, SHARE, "Share of such steps in all, of at least 1000, above which the run ends."),
    "lost_after_seconds": Key(30, Rule(int, low=5, high=80), "Seconds without a sign of life after which another process counts as lost."),
    "stuck_after_seconds": Key(1800, count(), "Seconds of a step after which all stacks are printed; at twice that it ends; 0 = never."),
    "strict_restore": Key(False, BOOL, "A damaged or renamed checkpoint ends the start, instead of being set aside for an older one."),
    "accept_changed_data": Key(False, BOOL, "A run goes on with other images than before; false = they are an error."),
    "profile_steps": Key(
        (0, 0),
        Rule(int, low=0, length=2),
        "START,COUNT: steps whose trace goes to WORKDIR/trace; START 0 = soon after each start; 0,0 = none.",
    ),
    "fsdp": Key(1, count(1), "Devices over which one copy of the state is split; 1 = each device holds a copy."),
}

_EVAL = {
    "gallery": Key("", TEXT, "Labelled images that vote, written as data.source; empty = no evaluation."),
    "query": Key("", TEXT, "Labelled images that are classified, written as data.source; empty = no evaluation."),
    "neighbours": Key((10, 20, 100, 200), Rule(int, low=1, length=0), "Neighbours k; a k above the gallery's size is reduced to it."),
    "temperature": Key(0.07, POSITIVE, "A neighbour's weight is exp(cosine / temperature)."),
    "tokens": Key("cls", choice("cls", "patches"), "Features: the cls token, or the mean patch token."),
    "size": Key(0, count(), "Side of the center crop, pixels; 0 = views.global_size. Later evaluations of the checkpoint take it too."),
    "resize": Key(0, count(), "Shorter side before the crop, pixels; 0 = size x 256 / 224. Later evaluations take it too."),
    "batch_size": Key(64, count(1), "Images in a batch of the evaluation."),
    "patch_train": Key("", TEXT, "Images with label maps whose patches vote, such as masks:DIR:list:FILE; empty = no patch k-NN."),
    "patch_test": Key("", TEXT, "Images with label maps whose patches are classified, as eval.patch_train; empty = no patch k-NN."),
    "patch_neighbours": Key((10,), Rule(int, low=1, length=0), "Neighbours k of a patch."),
    "patch_ignore": Key((255,), Rule(int, low=0, high=65535, length=0), "Numbers of the label maps that nothing counts."),
    "patch_zero_ignored": Key(False, BOOL, "Whether 0 in the label maps means none of the classes, as in ADE20K."),
    "attention_images": Key(0, count(), "First images of eval.query whose attention goes to TensorBoard; 0 = none. A ViT's."),
}

GROUPS = (
    Group("optimizer", "The optimizer and its schedules.", _OPTIMIZER),
    Group("teacher", "The teacher is an exponential moving average of the student.", _TEACHER),
    Group("schedule", "How long is trained. A launch that gives one of the two overrides the other.", _SCHEDULE),
    Group("run", "How it runs. Nothing here changes what is learned.", _RUN, machine=True),
    Group("eval", "The evaluations of run.eval_every_steps: k-NN, patch k-NN, attention.", _EVAL, machine=True),
)
