# The runtime of MMSegmentation, counted in iterations; kept here, since `mmseg::` does not resolve
# under the distribution name of the maintained fork.
default_scope = "mmseg"
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(
        type="hcformer_mm.ResumableCheckpointHook",
        by_epoch=False,
        save_last=True,
        max_keep_ckpts=3,
    ),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="mmseg.SegVisualizationHook"),
)
# Configs, classes and annotations that do not fit each other are refused before anything runs.
# So is a training whose losses are no longer finite.
custom_hooks = [dict(type="hcformer_mm.DataCheckHook"), dict(type="hcformer_mm.FiniteLossHook")]
vis_backends = [dict(type="LocalVisBackend")]
visualizer = dict(type="mmseg.SegLocalVisualizer", vis_backends=vis_backends, name="visualizer")
log_processor = dict(by_epoch=False)
log_level = "INFO"
load_from = None
resume = False
tta_model = dict(type="mmseg.SegTTAModel")
