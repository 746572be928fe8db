// The CPU of one signature check of stripe-node, best of many batches. Compare with `signature::verify` in
// ../../micro.
import { readFileSync } from "node:fs";
import Stripe from "stripe";

const stripe = new Stripe("sk_test_unused");
const secret = "whsec_bench";
const sample = readFileSync(new URL("../../../events/invoice.paid.renewal.json", import.meta.url), "utf8");

for (const bytes of [4096, 65536]) {
    const event = JSON.parse(sample);
    event.data.object.footer = "Thank you. ".repeat(bytes).slice(0, bytes - JSON.stringify(event).length);
    const payload = JSON.stringify(event);
    const header = stripe.webhooks.generateTestHeaderString({ payload, secret });
    const best = (call) => {
        let least = Infinity;
        for (let batch = 0; batch < 200; batch++) {
            const before = process.cpuUsage();
            for (let i = 0; i < 200; i++) call();
            const { user, system } = process.cpuUsage(before);
            if (batch > 20) least = Math.min(least, (user + system) / 200);
        }
        return least.toFixed(1);
    };
    console.log(
        `| stripe-node, ${bytes} bytes: \`verifyHeader\`, \`constructEvent\` | ${best(() => stripe.webhooks.signature.verifyHeader(payload, header, secret, 300))} µs, ${best(() => stripe.webhooks.constructEvent(payload, header, secret))} µs |`,
    );
}
