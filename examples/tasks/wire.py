"""What came to the nodes over an engine's connections, as the engine's workers counted it."""

import sys


def report(blocks, nodes):
    """Prints what came to each node. `blocks`: for each block its size and {node: bytes that came
    there}. Ends the program if a block came more than once to a node, or not at all."""
    names = sorted({name for _, came in blocks for name in came})
    total = sum(size for size, _ in blocks)
    print(f"{len(blocks)} blocks, {total:,} bytes; counted at the wire:")
    for name in names:
        print(f"  {sum(came.get(name, 0) for _, came in blocks):>14,} bytes to {name}")
    wrong = [n for n, (size, came) in enumerate(blocks) if list(came.values()) != [size] * nodes]
    if wrong:
        sys.exit(f"WRONG: blocks {wrong} did not cross once for each of {nodes} nodes")
    print(f"every block crossed the wire once for each node ({nodes})")
