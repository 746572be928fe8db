// One-time orders: the list, and one order with its history.

const ORDER_STATUSES = ["NEW", "IN_PROGRESS", "DELIVERED", "REVISION", "DONE", "REFUNDED"];

const orderLink = (id) => link(`#/orders/${encodeURIComponent(id)}`, code(id));

/** An amount in minor units. Currencies differ in their number of decimals, so it is shown as Stripe has it. */
const amount = (order) => `${number(order.amount_total)} ${order.currency.toUpperCase()} (minor units)`;

const ORDER_COLUMNS = [
  { title: "Paid", of: (order) => when(order.created_at) },
  { title: "Order", of: (order) => [h("strong", null, order.tier), h("br"), orderLink(order.id)] },
  { title: "Status", of: (order) => [pill(order.status), order.disputed && pill("disputed", "bad")] },
  { title: "Deadline", of: (order) => when(order.deadline) },
  { title: "User", of: (order) => userLink(order.user_id) },
];

function orderFilter(values) {
  const option = (value, text) => h("option", { value, selected: (values.status ?? "") === value }, text);
  const form = h(
    "form",
    { class: "card filters", role: "search", "aria-label": "Filter orders" },
    field(
      "Status",
      h(
        "select",
        { name: "status" },
        option("", "any"),
        ORDER_STATUSES.map((status) => option(status, status.replaceAll("_", " "))),
      ),
    ),
    field(
      "User",
      h("input", { name: "user", value: values.user ?? "", autocomplete: "off", spellcheck: "false" }),
    ),
    h(
      "div",
      { class: "row end wide" },
      h("a", { class: "button quiet", href: "#/orders" }, "Clear"),
      h("button", { type: "submit" }, "Filter"),
    ),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const set = Object.fromEntries(
      [...new FormData(form)].map(([name, value]) => [name, String(value).trim()]),
    );
    location.hash = `#/orders${query(set)}`;
  });
  return form;
}

async function ordersView({ parameters }) {
  const values = { status: parameters.status ?? "", user: parameters.user ?? "" };
  const page = await get(`/admin/orders${query(values)}`);
  const draw = (orders) =>
    orders.length === 0
      ? empty(values.status || values.user ? "No order fits this filter." : "No order was paid yet.")
      : table("Orders, newest first", ORDER_COLUMNS, orders);
  const more = async (next) => {
    const { orders, next: after } = await get(`/admin/orders${query({ ...values, next })}`);
    return { items: orders, next: after };
  };
  return {
    title: "Orders",
    body: [
      orderFilter(values),
      h("section", { class: "card", "aria-label": "Orders" }, paged(page.orders, page.next, more, draw)),
    ],
  };
}

async function orderView({ id }) {
  const { order } = await get(`/admin/orders/${encodeURIComponent(id)}`);
  const url = (text) => text && code(text);
  const about = card(
    "Order",
    facts([
      ["Status", [pill(order.status), order.disputed && [" ", pill("disputed", "bad")]]],
      ["User", userLink(order.user_id)],
      ["Customer", order.customer_id && code(order.customer_id)],
      ["E-mail", order.customer_email],
      ["Amount", amount(order)],
      ["Deadline", order.deadline && when(order.deadline)],
      ["Revisions left", number(order.revisions_left)],
      ["Checklist", order.checklist_status],
      ["Files", url(order.files_url)],
      ["Final package", url(order.final_package_url)],
      ["Upgraded from", order.upgraded_from],
      ["Changed", when(order.updated_at)],
    ]),
  );
  const steps = [
    { title: "When", of: (step) => when(step.at) },
    { title: "Step", of: (step) => pill(step.step) },
  ];
  return {
    title: order.tier,
    subtitle: code(order.id),
    back: ["#/orders", "Orders"],
    body: [about, card("History", table("History, oldest first", steps, order.history))],
  };
}
