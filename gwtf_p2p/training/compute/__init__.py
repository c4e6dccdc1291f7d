"""One part of a model at work: forward, backward, gradient sum, optimizer step.

Synchronous, called from one thread, without a network. Start with `executor` (`StageExecutor`) and `data_executor`; `optimizer`
steps, `tensor_bytes` is the form of tensors on the wire, `config.ExecutorConfig` imports no torch.
"""
