"""ComfyUI nodes of diffsteer; ComfyUI imports this folder from `custom_nodes`."""

from .nodes import NODES

NODE_CLASS_MAPPINGS = {name: node for name, (node, _) in NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS = {name: title for name, (_, title) in NODES.items()}
