// Prints, for each path of each object, which types Stripe's own TypeScript library allows for it.
//
//     node scripts/stripe_types.mjs FOLDER <paths.json
//
// FOLDER has `typescript` and `stripe` in its node_modules. paths.json: {"invoice": ["lines", …], …}. Output:
// {"invoice": {"lines": ["object"], …}, …}, with "absent" for an optional field, and [] for a field that
// this version does not have.

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { resolve } from "node:path";

const folder = resolve(process.argv[2]);
const ts = createRequire(folder + "/")("typescript");
const objects = {
  invoice: "Invoice",
  subscription: "Subscription",
  "checkout.session": "Checkout.Session",
  charge: "Charge",
  refund: "Refund",
  dispute: "Dispute",
  invoice_payment: "InvoicePayment",
  customer: "Customer",
};
const wanted = JSON.parse(readFileSync(0, "utf8"));
const names = Object.keys(wanted);
const file = folder + "/objects.ts";
const source = "import type Stripe from 'stripe';\n"
  + names.map((name, n) => `export type T${n} = Stripe.${objects[name]};`).join("\n");
const options = {
  strict: true, noEmit: true, skipLibCheck: true, types: [], module: ts.ModuleKind.Node16,
  moduleResolution: ts.ModuleResolutionKind.Node16, target: ts.ScriptTarget.ES2022,
};
const host = ts.createCompilerHost(options);
const { getSourceFile, fileExists, readFile } = host;
host.getSourceFile = (name, ...rest) =>
  name === file ? ts.createSourceFile(name, source, options.target) : getSourceFile.call(host, name, ...rest);
host.fileExists = (name) => name === file || fileExists.call(host, name);
host.readFile = (name) => (name === file ? source : readFile.call(host, name));
const program = ts.createProgram([file], options, host);
const checker = program.getTypeChecker();
const module = checker.getSymbolAtLocation(program.getSourceFile(file));
const exported = new Map(checker.getExportsOfModule(module).map((symbol) => [symbol.name, symbol]));

const parts = (type) => (type.isUnion() ? type.types.flatMap(parts) : [type]);

/** The types of the field `name` of any part of `types`. */
function field(types, name) {
  if (name.endsWith("[]")) {
    return field(types, name.slice(0, -2)).flatMap((type) => {
      const entry = checker.getIndexTypeOfType(type, ts.IndexKind.Number);
      return entry && !(type.flags & ts.TypeFlags.StringLike) ? parts(entry) : [];
    });
  }
  return types.flatMap((type) => {
    if (!(type.flags & ts.TypeFlags.Object)) return [];
    const symbol = type.getProperty(name);
    return symbol ? parts(checker.getTypeOfSymbol(symbol)) : [];
  });
}

function kind(type) {
  const { flags } = type;
  if (flags & ts.TypeFlags.StringLike) return "text";
  if (flags & ts.TypeFlags.NumberLike) return "number";
  if (flags & ts.TypeFlags.BooleanLike) return "flag";
  if (flags & ts.TypeFlags.Null) return "null";
  if (flags & ts.TypeFlags.Undefined) return "absent";
  return checker.isArrayType(type) ? "list" : "object";
}

const found = {};
for (const [n, name] of names.entries()) {
  const type = checker.getDeclaredTypeOfSymbol(exported.get(`T${n}`));
  if (type.flags & ts.TypeFlags.Any) continue; // this version has no such object
  found[name] = {};
  for (const path of wanted[name]) {
    const types = path.split(".").reduce(field, parts(type));
    found[name][path] = [...new Set(types.map(kind))].sort();
  }
}
console.log(JSON.stringify(found));
