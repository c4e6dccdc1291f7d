"""torch and transformers without a network: what one peer computes.

Nothing is imported here. A stage peer of stage k:

    run                                         # protocol.records.RunRecord
    run_check.check_run(run)                    # InputError that names the field, before any weight is allocated
    preflight.preflight(run.model_config)       # who makes a run: split = unsplit on a small copy, and the fingerprint
    part = split.build_stage_part(split.PartSpec.of(run, k))                   # initial weights, from the seed alone
    executor = executor.StageExecutor(part, executor.ExecutorConfig(device="cpu", torch_dtype="float32", recompute=False))
    optimizer = optimizer.PartOptimizer(executor.part.parameters, run.optimizer)   # after the executor chose the device

    activations = codecs.table.codec_of(run.wire.activations)
    x = codecs.payload.decode_payload(buffer, part.boundaries.input, activations)  # a tuple: hidden state, then side inputs
    y = executor.forward(microbatch, x)         # then codecs.payload.encode_payload(y, part.boundaries.output, activations)
    gx = executor.backward(microbatch, gy)      # counted under the id; executor.counted, executor.held
    total = executor.gradient_vector()          # total.mean() is averaged in the stage group with weight total.count
    optimizer.step(averaged, iteration)
    executor.reset_gradients()

A data peer has `build_data_part(PartSpec.of(run, 0))`, `DataExecutor` with `embed`, `loss_and_gradient`, `finish`, and
`data.open_data(run)`, whose source gives `batch(iteration, index, shard, shards) -> (tokens_BT, labels_BT)`.

State (download, checkpoint, comparison): `state.export_state`, `load_state`, `state_hash`, `checkpoint.save_checkpoint`,
`newest_checkpoint`, `latest_common_iteration`, `load_checkpoint`; `export.export_hf` writes what `transformers` loads.

torch's threads spin while they wait. Several peers on one machine: `torch.set_num_threads(1)` in each.
"""
