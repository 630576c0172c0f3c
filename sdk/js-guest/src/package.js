import { InvalidInput, ModelError } from './errors.js';
import { errorOf, host, own } from './host.js';

/** What `init` may read. */
export class Package {
  asset(name) {
    try {
      return own(host.assets.read(name));
    } catch (thrown) {
      throw new ModelError(`failed to read asset \`${name}\`: ${errorOf(thrown)}`);
    }
  }

  assetText(name) {
    return textOf(this.asset(name), `asset \`${name}\``, ModelError);
  }

  setting(name) {
    return host.settings.get(name);
  }

  graph(name) {
    const found = host.graphInfo.describe(name);
    if (found === undefined) throw new ModelError(`the package has no graph \`${name}\``);
    const tensor = ({ name, element, dimensions }) => ({
      name,
      type: element,
      dims: Array.from(dimensions, (dim) => dim ?? null),
    });
    return { inputs: found.inputs.map(tensor), outputs: found.outputs.map(tensor) };
  }
}

/** Bytes as text; `what` they are is named where they are none. */
export function textOf(bytes, what, Failure = InvalidInput) {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw new Failure(`${what} is not UTF-8 text`);
  }
}
