// A minimal Runtime API client. It does less than Lambda's own, in Node's favour.
import http from "node:http";

const [host, port] = process.env.AWS_LAMBDA_RUNTIME_API.split(":");
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });

function call(method, path, body) {
    return new Promise((resolve, reject) => {
        const request = http.request(
            { host, port, method, path: `/2018-06-01/runtime/invocation/${path}`, agent },
            (response) => {
                const parts = [];
                response.on("data", (part) => parts.push(part));
                response.on("end", () =>
                    resolve([response.headers["lambda-runtime-aws-request-id"], Buffer.concat(parts)]),
                );
            },
        );
        request.on("error", reject);
        request.end(body);
    });
}

export async function run(handler) {
    for (;;) {
        const [id, event] = await call("GET", "next");
        try {
            await call("POST", `${id}/response`, JSON.stringify(await handler(JSON.parse(event))));
        } catch (error) {
            await call(
                "POST",
                `${id}/error`,
                JSON.stringify({ errorType: error.name, errorMessage: error.message }),
            );
        }
    }
}
