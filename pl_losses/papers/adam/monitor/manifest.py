"""What the suite knows of this monitor without torch: its panels."""

from pl_losses.core.panels import Section, lines, pictures

BIAS_CORRECTION_MONITOR = (
    Section(
        "Bias correction (Kingma and Ba, section 3)",
        (
            pictures("Effective and largest steps beside the formulas", "adam/bias_correction"),
            lines("Training cost (Figs. 1 to 3)", "train/loss", smoothing=0.6, log_y=True),
            lines("Effective step, and the one measured", "adam/<group>/<effective_step|measured_step>"),
            lines("1 - beta^t", "adam/<group>/<bias_correction1|bias_correction2>"),
            lines("Largest step over alpha", "adam/<group>/max_update"),
            lines("Largest step over its bounds", "adam/<group>/<share_of_paper_bound|share_of_tight_bound>"),
        ),
        figure=True,
    ),
    Section(
        "Adam's moments and steps",
        (
            lines("Learning rate, and the effective one", "adam/<group>/<lr|effective_lr>"),
            lines("First moment, norm", "adam/<group>/<m_norm|m_hat_norm>", log_y=True),
            lines("Second moment, norm", "adam/<group>/<v_norm|v_hat_norm>", log_y=True),
            lines("Step, norm and root mean square", "adam/<group>/<update_norm|update_rms>", log_y=True),
            lines("Step over weights", "adam/<group>/update_to_weight", log_y=True),
            lines("Signal to noise", "adam/<group>/snr", log_y=True),
            lines("Shares: large steps, tiny v", "adam/<group>/<trust_region_share|eps_share>"),
            lines("Step counts", "adam/<group>/<step_min|step_max>"),
            lines("Coordinates stepped, steps skipped", "adam/<group>/<coordinates|skipped_steps>"),
        ),
    ),
)
