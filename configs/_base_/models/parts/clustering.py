# Clustering of every downsampling but the stem's, as in the paper (Secs. 2.2 and 4.1).
hc_clustering = dict(
    type="hcformer_mm.HCBackbone",
    hierarchical_level=3,
    embed_channels=128,
    init_scale=0.1,
)
