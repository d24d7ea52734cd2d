"""Pipelines and schedulers of diffusers.

A step of a steered pipeline, in the order of the modules that it passes:

* `step_guidance` answers the calls of the network (`probed_calls`) with `probes`; `hooks` and
  `runs` tell it of them.
* When the scheduler steps, `conditions` tells from the probes what is prompt and null prompt
  (`sample_placement`, `scheduler_batch`, `several_images`). A null prompt that the pipeline does
  not send comes from `null_call` or `earlier_null`.
* `guided_output` evaluates the guidance by a `Denoiser`, whose network is `batches`, over calls in
  the form of a `layout` (`batched_arguments`, `second_text`); `time_arguments` tells the network
  another noise level, `measured_image_tokens` where the image is among the tokens.
* A second sample, sound beside video, is stepped by `second_step`.

`families` is the table of networks that are known without a measurement: those whose calls are
also read before a step (`known_family_call`, `network`, `prompt_conditions`). `guider` and
`scheduler` are the classes of diffusers that take a guidance and a sampler of ours. `load` and what
it imports (`single_file`, `lora`, `weights`, `offload`, `shipped`) read models.
"""
