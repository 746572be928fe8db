(() => {
  "use strict";
  const { page } = document.querySelector("[data-page]").dataset;
  const buttons = document.querySelectorAll("[data-send]");
  const trouble = document.getElementById("trouble");
  const send = async (button) => {
    buttons.forEach((one) => { one.disabled = true; });
    trouble.hidden = true;
    try {
      const headers = { "content-type": "application/json" };
      const answer = await fetch(page, { method: "POST", headers, body: button.dataset.send });
      const json = await answer.json();
      if (!answer.ok) throw new Error(json.message);
      location.assign(json.next);
    } catch (error) {
      trouble.textContent = error.message || "The stack does not answer.";
      trouble.hidden = false;
      buttons.forEach((one) => { one.disabled = false; });
    }
  };
  buttons.forEach((button) => button.addEventListener("click", () => send(button)));
})();
