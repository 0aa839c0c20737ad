package commands

import "github.com/spf13/cobra"

// nouns are the commands that show and change the cluster.
func nouns(a *app) []*cobra.Command {
	list := []*cobra.Command{
		newApplyCommand(a),
		newBackupCommand(a),
		newBGPCommand(a),
		newConfirmCommand(a),
		newCreateCommand(a),
		newDeleteCommand(a),
		newDiagsCommand(a),
		newDoctorCommand(a),
		newDropsCommand(a),
		newEditCommand(a),
		newEndpointCommand(a),
		newEventsCommand(a),
		newExplainCommand(a),
		newGetCommand(a),
		newHostEndpointCommand(a),
		newImportCommand(a),
		newInitCommand(a),
		newHistoryCommand(a),
		newIPAMCommand(a),
		newJoinCommand(a),
		newNetworkCommand(a),
		newNetworkSetCommand(a),
		newPolicyCommand(a),
		newPoolCommand(a),
		newProfileCommand(a),
		newReplaceCommand(a),
		newRestoreCommand(a),
		newRouteCommand(a),
		newStatusCommand(a),
		newTraceCommand(a),
		newTierCommand(a),
		newTenantCommand(a),
		newTokenCommand(a),
		newUndoCommand(a),
	}
	for _, cmd := range list {
		addConfirms(a, cmd)
	}
	return list
}
