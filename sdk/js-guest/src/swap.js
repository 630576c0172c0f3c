// The module that becomes the component of `tessera dev`, and nothing else: it has no project in it, and runs the one that
// it finds in an asset, in every request. What `tessera build` makes of `entry.js` has no way to run other code than its own.
import * as assets from 'tessera:endpoint/assets@0.1.0';
import * as compute from 'tessera:endpoint/compute@0.1.0';
import * as graphInfo from 'tessera:endpoint/graph-info@0.1.0';
import * as logging from 'tessera:endpoint/logging@0.1.0';
import * as requestHeaders from 'tessera:endpoint/request-headers@0.1.0';
import * as settings from 'tessera:endpoint/settings@0.1.0';
import * as streaming from 'tessera:endpoint/streaming@0.1.0';
import { describe } from './log.js';

const CODE = 'tessera-dev-code';

let exports;

export function init() {
  const code = new TextDecoder().decode(assets.read(CODE));
  try {
    // In the global scope, and not in this one.
    const component = (0, eval)(code);
    exports = component({ assets, compute, graphInfo, logging, requestHeaders, settings, streaming });
  } catch (thrown) {
    throw Object.assign(new Error('failed'), { payload: describe(thrown) });
  }
  exports.init();
}

export const handle = (request) => exports.handle(request);
