// The module that becomes a component: `tessera build` puts the project's own in the place of `tessera-endpoint`.
import * as assets from 'tessera:endpoint/assets@0.1.0';
import * as compute from 'tessera:endpoint/compute@0.1.0';
import * as graphInfo from 'tessera:endpoint/graph-info@0.1.0';
import * as logging from 'tessera:endpoint/logging@0.1.0';
import * as requestHeaders from 'tessera:endpoint/request-headers@0.1.0';
import * as settings from 'tessera:endpoint/settings@0.1.0';
import * as streaming from 'tessera:endpoint/streaming@0.1.0';
import { component } from './component.js';
import * as endpoint from 'tessera-endpoint';

const exports = component(endpoint, { assets, compute, graphInfo, logging, requestHeaders, settings, streaming });
export const { init, handle } = exports;
