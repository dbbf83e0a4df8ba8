"""Loading and wrapping of Hugging Face models: policy, critic, reward model, frozen holder."""
