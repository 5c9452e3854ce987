# mmdet's runtime, counted in iterations instead of epochs.
_base_ = "mmdet::_base_/default_runtime.py"

default_hooks = dict(
    checkpoint=dict(
        type="hcformer_mm.ResumableCheckpointHook",
        by_epoch=False,
        save_last=True,
        max_keep_ckpts=3,
    )
)
log_processor = dict(by_epoch=False)
# Configs, classes and annotations that do not fit each other are refused before anything runs.
# So is a training whose losses are no longer finite.
custom_hooks = [dict(type="hcformer_mm.DataCheckHook"), dict(type="hcformer_mm.FiniteLossHook")]
tta_model = dict(type="hcformer_mm.HCFormerTTAModel")
