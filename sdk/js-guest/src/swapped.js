// What `swap.js` runs: the project's module in the place of `tessera-endpoint`, bundled as a script.
import { component } from './component.js';
import * as endpoint from 'tessera-endpoint';

export const exportsOf = (interfaces) => component(endpoint, interfaces);
