// What a cluster is made of, beside its machines: nodes that join, the witness, fence devices, volumes,
// networks and rules, each with the dialog that makes or removes one.

import { createLazyRoute, Link } from "@tanstack/react-router";
import { mayDo } from "../../parts/format";
import { useRole } from "../../session";
import { FenceDevices } from "./FenceDevices";
import { HostNetworks } from "./HostNetworks";
import { Join } from "./Join";
import { Networks } from "./Networks";
import { Rules } from "./Rules";
import { Volumes } from "./Volumes";
import { Witness } from "./Witness";

export const route = createLazyRoute("/setup")({ component: Setup });

function Setup() {
  const role = useRole();
  const why = mayDo(role, "administrator") ? undefined : "This needs the role administrator.";
  return (
    <>
      <div className="page-head">
        <h1>Set-up</h1>
        <Link to="/validation">Does it all fit together?</Link>
      </div>
      <Join why={why} />
      <Witness why={why} />
      <FenceDevices why={why} />
      <Volumes why={why} />
      <HostNetworks why={why} />
      <Networks why={why} />
      <Rules why={why} />
    </>
  );
}
